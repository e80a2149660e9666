/* SPDX-License-Identifier: Apache-2.0 */
/* What the owner is told, beside requests that wait for it. */
#ifndef LAZYFS_EVENTS_H
#define LAZYFS_EVENTS_H

#include "lazyfs_server.h"
#include "server_state.h"

/* lfs_server_wake() makes the eventfd readable. */
void lfs_server_wake(struct lfs_server *server);

/* Tell the owner something that needs no answer; dropped when it is not
 * listening. */
void lfs_tell(struct lfs_server *server, const struct lfs_event *event);

/* The request failed because of what is on disk: EIO, and the owner is told. */
void lfs_fault(struct lfs_worker *worker, const struct lfs_request *request);

#endif /* LAZYFS_EVENTS_H */
