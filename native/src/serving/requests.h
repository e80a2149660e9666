/* SPDX-License-Identifier: Apache-2.0 */
/* Which request goes where. */
#ifndef LAZYFS_REQUESTS_H
#define LAZYFS_REQUESTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server_state.h"

/* lfs_dispatch() answers what the kernel said, or puts it on the table; false:
 * the connection is over. */
bool lfs_dispatch(struct lfs_worker *worker, const uint8_t *in, size_t size);

#endif /* LAZYFS_REQUESTS_H */
