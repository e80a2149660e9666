/* SPDX-License-Identifier: Apache-2.0 */
/* What is written to the kernel, on the worker's descriptor; a reader that has
 * gone away is no error. */
#ifndef LAZYFS_REPLY_H
#define LAZYFS_REPLY_H

#include <stddef.h>
#include <stdint.h>

#include "server_state.h"

void lfs_reply(const struct lfs_worker *worker, uint64_t unique,
	       const void *data, size_t size);
void lfs_reply_error(const struct lfs_worker *worker, uint64_t unique,
		     int error);
/* A name or value: 'wanted' is the room that the caller of getxattr has; 0 asks
 * for the size only. */
void lfs_reply_xattr(const struct lfs_worker *worker, uint64_t unique,
		     const void *data, size_t size, uint32_t wanted);

#endif /* LAZYFS_REPLY_H */
