/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layer table: which chunk fills which range of a layer's device.
 *
 *   header   64 bytes   magic, layout version u32, record size u32, count u64,
 *                       device size u64, and what only fetching needs
 *   records  80 bytes   device offset u64, size u64, ...; sorted
 *   trailer  32 bytes   sha256 of all that precedes
 */
#include <string.h>

#include "bytes.h"
#include "lazyfs_tables.h"

#define HEADER_SIZE 64u
#define RECORD_SIZE 80u
#define TRAILER_SIZE 32u
#define CODEC_BYTE 72u
#define CODEC_HOLE 2u
#define LAYOUT_VERSION 1u
#define MAX_DEVICE_SIZE ((uint64_t)1 << 44)

enum lfs_result lfs_table_open(struct lfs_table *table, const uint8_t *bytes,
			       size_t size)
{
	if (size < HEADER_SIZE + TRAILER_SIZE || memcmp(bytes, "LFSTABL1", 8))
		return LFS_CORRUPT;
	if (lfs_load32(bytes + 8) != LAYOUT_VERSION ||
	    lfs_load32(bytes + 12) != RECORD_SIZE)
		return LFS_CORRUPT;
	table->count = lfs_load64(bytes + 16);
	table->device_size = lfs_load64(bytes + 24);
	table->records = bytes + HEADER_SIZE;
	size -= HEADER_SIZE + TRAILER_SIZE;
	if (size % RECORD_SIZE || table->count != size / RECORD_SIZE ||
	    table->device_size > MAX_DEVICE_SIZE)
		return LFS_CORRUPT;
	return LFS_OK;
}

static uint64_t record_offset(const struct lfs_table *table, uint64_t record)
{
	return lfs_load64(table->records + record * RECORD_SIZE);
}

void lfs_table_record(const struct lfs_table *table, uint64_t record,
		      uint64_t *start, uint64_t *end)
{
	uint64_t size = lfs_load64(table->records + record * RECORD_SIZE + 8);

	*start = record_offset(table, record);
	*end = size > UINT64_MAX - *start ? UINT64_MAX : *start + size;
}

/* The number of records that begin before 'place'. */
static uint64_t records_before(const struct lfs_table *table, uint64_t place)
{
	uint64_t low = 0, high = table->count, middle;

	while (low < high) {
		middle = low + (high - low) / 2;
		if (record_offset(table, middle) < place)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

void lfs_table_overlapping(const struct lfs_table *table, uint64_t start,
			   uint64_t end, uint64_t *first, uint64_t *last)
{
	uint64_t from, to;

	*first = records_before(table, start);
	*last = records_before(table, end);
	if (*first) {
		lfs_table_record(table, *first - 1, &from, &to);
		if (to > start)
			--*first;
	}
	if (*last < *first)
		*last = *first; /* a table that is not sorted */
}

bool lfs_table_is_hole(const struct lfs_table *table, uint64_t record)
{
	return table->records[record * RECORD_SIZE + CODEC_BYTE] == CODEC_HOLE;
}

enum lfs_result lfs_table_covering(const struct lfs_table *table,
				   uint64_t start, uint64_t end,
				   uint64_t *first, uint64_t *last)
{
	uint64_t low = 0, high = table->count, middle, offset, size;

	if (start >= end)
		return LFS_CORRUPT;
	/* The last record that begins at or before 'start' */
	while (high - low > 1) {
		middle = low + (high - low) / 2;
		if (record_offset(table, middle) <= start)
			low = middle;
		else
			high = middle;
	}
	*first = low;
	/* One record joins the next until 'end' is reached */
	for (; low < table->count && start < end; low++) {
		offset = record_offset(table, low);
		size = lfs_load64(table->records + low * RECORD_SIZE + 8);
		if (offset > start || size > MAX_DEVICE_SIZE ||
		    offset + size <= start)
			return LFS_CORRUPT;
		start = offset + size;
	}
	if (start < end)
		return LFS_CORRUPT;
	*last = low;
	return LFS_OK;
}
