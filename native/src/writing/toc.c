/* SPDX-License-Identifier: Apache-2.0 */
/* A scanned table of contents: how its lists grow, and what it is asked. */
#include "toc.h"

#include <stdlib.h>
#include <string.h>

#include "lazyfs_toc.h"
#include "reading/bytes.h"

bool toc_enlarge(void **array, uint32_t *room, size_t size)
{
	uint32_t wanted;
	void *bigger;

	if (*room > UINT32_MAX / 4)
		return false;
	wanted = *room ? *room * 2 : 1024;
	bigger = realloc(*array, wanted * size);
	if (!bigger)
		return false;
	*array = bigger;
	*room = wanted;
	return true;
}

uint32_t toc_find(const struct lfs_toc *toc, const uint8_t *path, size_t size)
{
	uint32_t low = 0, high = toc->count, middle;
	const struct toc_entry *entry;
	int order;

	while (low < high) {
		middle = low + (high - low) / 2;
		entry = &toc->entries[toc->sorted[middle]];
		order = lfs_compare_names(entry->path, entry->path_size, path,
					  size);
		if (order == 0)
			return toc->sorted[middle];
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return NONE;
}

void lfs_toc_facts(const struct lfs_toc *toc, struct lfs_toc_facts *facts)
{
	const struct toc_entry *entry;
	uint32_t found;

	memset(facts, 0, sizeof(*facts));
	facts->entry_count = toc->count;
	facts->chunk_count = toc->chunk_count;
	facts->device_size = toc->device_size;
	facts->tar_split = toc->tar_split;
	facts->tar_split_size = toc->tar_split_size;
	if (toc_find(toc, (const uint8_t *)TOC_NO_LANDMARK,
		     strlen(TOC_NO_LANDMARK)) != NONE) {
		facts->has_prefetch_end = true;
		return;
	}
	found = toc_find(toc, (const uint8_t *)TOC_LANDMARK,
			 strlen(TOC_LANDMARK));
	if (found == NONE)
		return;
	entry = &toc->entries[found];
	if (entry->chunk_count) {
		facts->has_prefetch_end = true;
		facts->prefetch_end =
			toc->chunks[entry->first_chunk].blob_offset;
	}
}

enum lfs_result lfs_toc_next_xattrs(const struct lfs_toc *toc, uint32_t *from,
				    struct lfs_toc_xattrs *found)
{
	const struct toc_entry *entry;

	while (*from < toc->count) {
		entry = &toc->entries[*from];
		found->entry = (*from)++;
		if (!entry->xattrs)
			continue;
		found->path = entry->path;
		found->path_size = entry->path_size;
		found->json = entry->xattrs;
		found->json_size = entry->xattrs_size;
		return LFS_OK;
	}
	return LFS_ABSENT;
}

void lfs_toc_free(struct lfs_toc *toc)
{
	if (!toc)
		return;
	free(toc->arena);
	free(toc->entries);
	free(toc->chunks);
	free(toc->nodes);
	free(toc->sorted);
	free(toc);
}
