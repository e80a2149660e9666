/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The provenance table: which layer each inode of a rootfs index comes from.
 *
 *   header   32 bytes   magic, record size u32, zero u32, count u64, 8 zeros
 *   records  40 bytes   nid u32, layer u16, flags u16, sha256; sorted by nid
 *   trailer  32 bytes   sha256 of all that precedes
 */
#include <string.h>

#include "bytes.h"
#include "lazyfs_tables.h"

#define HEADER_SIZE 32u
#define RECORD_SIZE 40u
#define TRAILER_SIZE 32u
#define HAS_DIGEST 1u

enum lfs_result lfs_provenance_open(struct lfs_provenance *provenance,
				    const uint8_t *bytes, size_t size)
{
	if (size < HEADER_SIZE + TRAILER_SIZE || memcmp(bytes, "LFSPROV1", 8) ||
	    lfs_load32(bytes + 8) != RECORD_SIZE)
		return LFS_CORRUPT;
	provenance->count = lfs_load64(bytes + 16);
	provenance->records = bytes + HEADER_SIZE;
	size -= HEADER_SIZE + TRAILER_SIZE;
	if (size % RECORD_SIZE || provenance->count != size / RECORD_SIZE)
		return LFS_CORRUPT;
	return LFS_OK;
}

enum lfs_result lfs_provenance_of(const struct lfs_provenance *provenance,
				  uint64_t nid, struct lfs_origin *origin)
{
	uint64_t low = 0, high = provenance->count, middle;
	const uint8_t *record;

	while (low < high) {
		middle = low + (high - low) / 2;
		record = provenance->records + middle * RECORD_SIZE;
		if (lfs_load32(record) < nid) {
			low = middle + 1;
		} else if (lfs_load32(record) > nid) {
			high = middle;
		} else {
			origin->layer = lfs_load16(record + 4);
			origin->digest = NULL;
			if (lfs_load16(record + 6) & HAS_DIGEST)
				origin->digest = record + 8;
			return LFS_OK;
		}
	}
	return LFS_ABSENT;
}
