/* SPDX-License-Identifier: Apache-2.0 */
/* The table of requests that wait for the owner. */
#ifndef LAZYFS_WAITING_H
#define LAZYFS_WAITING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server_state.h"

int lfs_waiting_create(struct lfs_server *server);
void lfs_waiting_destroy(struct lfs_server *server);

/* Put a request on the table; false: it is full.  'is_lost': the content file
 * does not have what is marked.  'is_direct': the read fills no pages. */
bool lfs_wait_for_bytes(struct lfs_worker *worker, uint64_t unique,
			uint64_t node, uint64_t offset, uint32_t device,
			uint64_t device_offset, uint32_t size, bool is_lost,
			bool is_direct);
bool lfs_wait_for_attribute(struct lfs_worker *worker, uint64_t unique,
			    uint32_t number, uint32_t wanted);

/* Copy the request 'id'; with 'is_final', take it off the table too.  False:
 * nobody waits for it. */
bool lfs_waiting_get(struct lfs_server *server, uint64_t id, bool is_final,
		     struct lfs_waiting *request);

/* Answer EINTR to the waiting request 'unique'; false: none waits. */
bool lfs_interrupt(struct lfs_server *server, uint64_t unique);

#endif /* LAZYFS_WAITING_H */
