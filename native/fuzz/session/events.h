/* SPDX-License-Identifier: Apache-2.0 */
/* What the server tells its owner, and the owner's answers. */
#ifndef LAZYFS_FUZZ_EVENTS_H
#define LAZYFS_FUZZ_EVENTS_H

#include "session.h"

void check_event(struct session *s, const struct lfs_event *event);
void take(struct session *s, size_t max);
/* Answer an event, which may be one that was answered before. */
void answer(struct session *s, struct input *in);

#endif /* LAZYFS_FUZZ_EVENTS_H */
