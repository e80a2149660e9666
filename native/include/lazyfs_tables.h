/* SPDX-License-Identifier: Apache-2.0 */
/* The tables beside a rootfs index: what a layer's device is made of, and which
 * layer each inode comes from. */
#ifndef LAZYFS_TABLES_H
#define LAZYFS_TABLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lazyfs_result.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- The layer table ----------------------------------------------------- */

/* An opened table.  Records count from 0, in the order of device offsets. */
struct lfs_table {
	const uint8_t *records;
	uint64_t count;
	uint64_t device_size;
};

/* lfs_table_open() checks header and size.  LFS_CORRUPT: not a layer table. */
enum lfs_result lfs_table_open(struct lfs_table *table, const uint8_t *bytes,
			       size_t size);

/*
 * lfs_table_covering() finds the records that hold the device bytes 'start' to
 * 'end' (start < end): '*first' up to, not including, '*last'.  LFS_CORRUPT:
 * not every one of these bytes is in a record, so none of them can be verified.
 */
enum lfs_result lfs_table_covering(const struct lfs_table *table,
				   uint64_t start, uint64_t end,
				   uint64_t *first, uint64_t *last);

/*
 * lfs_table_overlapping() finds the records that hold any of the device bytes
 * 'start' to 'end': '*first' up to, not including, '*last'; maybe none.
 */
void lfs_table_overlapping(const struct lfs_table *table, uint64_t start,
			   uint64_t end, uint64_t *first, uint64_t *last);

/* lfs_table_record() says which device bytes record 'record' holds. */
void lfs_table_record(const struct lfs_table *table, uint64_t record,
		      uint64_t *start, uint64_t *end);

/* lfs_table_is_hole() says whether a record is zeros that are written nowhere. */
bool lfs_table_is_hole(const struct lfs_table *table, uint64_t record);

/* ---- The provenance table ------------------------------------------------ */

struct lfs_provenance {
	const uint8_t *records;
	uint64_t count;
};

/* Which layer an inode comes from (0 is the bottom one), and the sha256 of the
 * file, NULL if its producer did not say; 32 bytes that point into the table.
 */
struct lfs_origin {
	uint32_t layer;
	const uint8_t *digest;
};

enum lfs_result lfs_provenance_open(struct lfs_provenance *provenance,
				    const uint8_t *bytes, size_t size);

/* lfs_provenance_of() finds the origin of an inode.  LFS_ABSENT: no layer has
 * an entry for it. */
enum lfs_result lfs_provenance_of(const struct lfs_provenance *provenance,
				  uint64_t nid, struct lfs_origin *origin);

#ifdef __cplusplus
}
#endif

#endif /* LAZYFS_TABLES_H */
