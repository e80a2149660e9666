/* SPDX-License-Identifier: Apache-2.0 */
/* What the server may say to the kernel. */
#ifndef LAZYFS_FUZZ_REPLIES_H
#define LAZYFS_FUZZ_REPLIES_H

#include "session.h"

struct sent *find_sent(struct session *s, uint64_t unique);

/* Take what the server has said, and check it; returns how many replies there
 * were. */
unsigned receive(struct session *s);

#endif /* LAZYFS_FUZZ_REPLIES_H */
