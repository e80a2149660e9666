/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel says. */
#ifndef LAZYFS_FUZZ_REQUESTS_H
#define LAZYFS_FUZZ_REQUESTS_H

#include "session.h"

/* Send a request of the kind 'what', and check what is said at once. */
void ask(struct session *s, struct input *in, uint8_t what);

#endif /* LAZYFS_FUZZ_REQUESTS_H */
