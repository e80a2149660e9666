/* SPDX-License-Identifier: Apache-2.0 */
/* Where a thread runs; for the calling thread's own worker. */
#ifndef LAZYFS_PLACEMENT_H
#define LAZYFS_PLACEMENT_H

#include <stdint.h>

#include "server_state.h"

void lfs_place(struct lfs_worker *worker);
/* A request of task 'pid' has been answered; 0: of nobody to be followed. */
void lfs_follow(struct lfs_worker *worker, uint32_t pid);

#endif /* LAZYFS_PLACEMENT_H */
