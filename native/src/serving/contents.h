/* SPDX-License-Identifier: Apache-2.0 */
/* Reads, and what of a device is resident. */
#ifndef LAZYFS_CONTENTS_H
#define LAZYFS_CONTENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lazyfs_result.h"
#include "server_state.h"

void lfs_read(struct lfs_worker *, const struct lfs_request *);

/* Are all records that hold these bytes resident?  LFS_ABSENT: no. */
enum lfs_result lfs_is_resident(const struct lfs_server *server,
				const struct lfs_device *device,
				uint64_t offset, uint64_t size);
/* Read bytes that are resident; false: the content file lacks them, or a hole
 * of it has taken their place. */
bool lfs_read_whole(const struct lfs_device *device, uint8_t *out,
		    uint64_t offset, size_t size);
/* Make zeros of what 'out' has from places that no record holds. */
void lfs_clear_gaps(const struct lfs_device *device, uint8_t *out,
		    uint64_t offset, size_t size);

#endif /* LAZYFS_CONTENTS_H */
