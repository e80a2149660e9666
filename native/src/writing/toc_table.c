/* SPDX-License-Identifier: Apache-2.0 */
/* The layer table that a scanned table of contents means. */
#include <stdlib.h>
#include <string.h>

#include "lazyfs_toc.h"
#include "reading/bytes.h"
#include "toc.h"

static int compare_offsets(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Return the least of the sorted 'starts' that is above 'offset', or 'end'. */
static uint64_t next_start(const uint64_t *starts, uint32_t count,
			   uint64_t offset, uint64_t end)
{
	uint32_t low = 0, high = count, middle;

	while (low < high) {
		middle = low + (high - low) / 2;
		if (starts[middle] <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	return low < count ? starts[low] : end;
}

enum lfs_result lfs_toc_table(const struct lfs_toc *toc, uint64_t payload_end,
			      uint8_t *records, struct lfs_toc_extent *extent)
{
	uint64_t *starts, place = 0, inner = 0;
	const struct toc_chunk *chunk;
	const struct toc_entry *entry;
	uint32_t i, n, count = toc->chunk_count;
	bool is_sorted = true;

	memset(extent, 0, sizeof(*extent));
	extent->in_blob_order = true;
	starts = malloc((count + 1) * sizeof(*starts));
	if (!starts)
		return LFS_UNUSUAL;
	for (i = 0; i < count; i++) {
		starts[i] = toc->chunks[i].blob_offset;
		is_sorted = is_sorted && (!i || starts[i - 1] <= starts[i]);
	}
	if (!is_sorted)
		qsort(starts, count, sizeof(*starts), compare_offsets);
	if (count && starts[count - 1] >= payload_end) {
		free(starts);
		return LFS_UNUSUAL;
	}
	for (i = 0; i < toc->count; i++) {
		entry = &toc->entries[i];
		for (n = 0; n < entry->chunk_count; n++) {
			chunk = &toc->chunks[entry->first_chunk + n];
			lfs_store64(records,
				    entry->device_offset + chunk->offset);
			lfs_store64(records + 8, chunk->size);
			lfs_store64(records + 16, chunk->blob_offset);
			lfs_store64(records + 24, chunk->inner_offset);
			lfs_store64(records + 32,
				    next_start(starts, count,
					       chunk->blob_offset,
					       payload_end));
			memcpy(records + 40, chunk->digest, DIGEST_SIZE);
			memset(records + 72, 0, 8);
			records[72] = toc->codec;
			records += LFS_RECORD_SIZE;
			extent->end = entry->device_offset + chunk->offset +
				      chunk->size;
			extent->payload_size += chunk->size;
			if (chunk->blob_offset < place ||
			    (chunk->blob_offset == place &&
			     chunk->inner_offset < inner))
				extent->in_blob_order = false;
			place = chunk->blob_offset;
			inner = chunk->inner_offset;
		}
	}
	free(starts);
	return LFS_OK;
}
