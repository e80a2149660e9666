/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One layer's tree, from the paths of its entries; what its entries say beside
 * the tree.  The rules are those of lazyfs/rootfs/{merge,whiteout}.py.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "toc.h"

#define WHITEOUT ".wh."
#define OPAQUE ".wh..wh..opq"
#define RESERVED ".wh..wh."
#define LANDMARK ".prefetch.landmark"
#define NO_LANDMARK ".no.prefetch.landmark"
#define MAX_DEPTH 1024
#define IMPLIED_COST 64

static bool starts_with(const uint8_t *name, size_t size, const char *prefix)
{
	return size >= strlen(prefix) &&
	       memcmp(name, prefix, strlen(prefix)) == 0;
}

static bool is_name(const uint8_t *name, size_t size, const char *other)
{
	return size == strlen(other) && memcmp(name, other, size) == 0;
}

static int compare(const uint8_t *a, size_t a_size, const uint8_t *b,
		   size_t b_size)
{
	int order = memcmp(a, b, a_size < b_size ? a_size : b_size);

	return order ? order : (a_size > b_size) - (a_size < b_size);
}

static int compare_entries(const void *a, const void *b, void *entries)
{
	const struct toc_entry *x = entries, *y = entries;

	x += *(const uint32_t *)a;
	y += *(const uint32_t *)b;
	return compare(x->path, x->path_size, y->path, y->path_size);
}

/* Sort the entries by path; no two may have the same one. */
static bool sort(struct lfs_toc *toc)
{
	bool is_sorted = true;
	uint32_t i;
	int order;

	toc->sorted = malloc((toc->count + 1) * sizeof(*toc->sorted));
	if (!toc->sorted)
		return false;
	for (i = 0; i < toc->count; i++)
		toc->sorted[i] = i;
	for (i = 1; i < toc->count && is_sorted; i++)
		is_sorted = compare_entries(&toc->sorted[i - 1],
					    &toc->sorted[i],
					    toc->entries) < 0;
	if (is_sorted)
		return true;
	qsort_r(toc->sorted, toc->count, sizeof(*toc->sorted), compare_entries,
		toc->entries);
	for (i = 1; i < toc->count; i++) {
		order = compare_entries(&toc->sorted[i - 1], &toc->sorted[i],
					toc->entries);
		if (order == 0)
			return false;
	}
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
		order = compare(entry->path, entry->path_size, path, size);
		if (order == 0)
			return toc->sorted[middle];
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return NONE;
}

/* Say whether a whiteout names nothing that can be removed. */
static bool is_bare(const uint8_t *name, size_t size)
{
	return is_name(name, size, WHITEOUT) ||
	       is_name(name, size, WHITEOUT ".") ||
	       is_name(name, size, WHITEOUT "..");
}

/* An open directory, or a file, above the path that is looked at. */
struct above {
	uint32_t node;
	uint32_t path_size;
	uint32_t last_child, last_whiteout;
};

struct planting {
	struct lfs_toc *toc;
	struct above stack[MAX_DEPTH + 2];
	unsigned depth; /* of the stack's top */
	const uint8_t *path; /* of the top */
};

static uint32_t add_node(struct planting *work, const uint8_t *name,
			 size_t size, uint32_t entry, uint8_t kind)
{
	struct lfs_toc *toc = work->toc;
	struct toc_node *node;

	if (!toc_grow((void **)&toc->nodes, toc->node_count, &toc->node_room,
		      sizeof(*toc->nodes)))
		return NONE;
	node = &toc->nodes[toc->node_count];
	node->name = name;
	node->name_size = (uint32_t)size;
	node->entry = entry;
	node->first_child = node->next = NONE;
	node->first_whiteout = node->target = NONE;
	node->kind = kind;
	node->is_opaque = false;
	return toc->node_count++;
}

/* Hang 'node' into the directory at the top, or note what it says of it. */
static void hang(struct planting *work, uint32_t number)
{
	struct above *above = &work->stack[work->depth];
	struct toc_node *nodes = work->toc->nodes, *node = &nodes[number];
	struct toc_node *parent = &nodes[above->node];
	uint32_t *last = &above->last_child, *first = &parent->first_child;

	if (starts_with(node->name, node->name_size, WHITEOUT)) {
		if (is_name(node->name, node->name_size, OPAQUE))
			parent->is_opaque = true;
		if (starts_with(node->name, node->name_size, RESERVED))
			return;
		node->name += strlen(WHITEOUT);
		node->name_size -= (uint32_t)strlen(WHITEOUT);
		last = &above->last_whiteout;
		first = &parent->first_whiteout;
	} else if (work->depth == 0 &&
		   (is_name(node->name, node->name_size, LANDMARK) ||
		    is_name(node->name, node->name_size, NO_LANDMARK))) {
		return;
	}
	if (*last == NONE)
		*first = number;
	else
		nodes[*last].next = number;
	*last = number;
}

/* Say whether what 'above' stands for contains 'path'. */
static bool contains(const struct planting *work, const struct above *above,
		     const uint8_t *path, uint32_t size)
{
	if (above->path_size == 0)
		return true;
	return size > above->path_size && path[above->path_size] == 0 &&
	       memcmp(work->path, path, above->path_size) == 0;
}

static bool push(struct planting *work, uint32_t node, const uint8_t *path,
		 uint32_t size)
{
	struct above *above;

	if (work->depth > MAX_DEPTH)
		return false;
	above = &work->stack[++work->depth];
	above->node = node;
	above->path_size = size;
	above->last_child = above->last_whiteout = NONE;
	work->path = path;
	return true;
}

/* Add the entry and the directories that its path implies. */
static bool plant(struct planting *work, uint32_t number, uint64_t *implied,
		  const struct lfs_toc_limits *limits)
{
	struct toc_entry *entry = &work->toc->entries[number];
	const uint8_t *path = entry->path, *slash;
	uint32_t size = entry->path_size, start, node;
	const struct toc_node *top;

	while (!contains(work, &work->stack[work->depth], path, size))
		work->depth--;
	for (;;) {
		top = &work->toc->nodes[work->stack[work->depth].node];
		start = work->stack[work->depth].path_size;
		start += start > 0;
		if (top->kind != KIND_DIRECTORY)
			return false;
		slash = memchr(path + start, 0, size - start);
		if (!slash)
			break;
		*implied += (uint64_t)(slash - path) + IMPLIED_COST;
		if (*implied > limits->implied_size ||
		    starts_with(path + start, (size_t)(slash - path) - start,
				WHITEOUT))
			return false;
		node = add_node(work, path + start,
				(size_t)(slash - path) - start, NONE,
				KIND_DIRECTORY);
		if (node == NONE)
			return false;
		hang(work, node);
		if (!push(work, node, path, (uint32_t)(slash - path)))
			return false;
	}
	if (is_bare(path + start, size - start))
		return false;
	node = add_node(work, path + start, size - start, number, entry->kind);
	if (node == NONE)
		return false;
	/* What lies below a whiteout is rare: its kind makes that unusual. */
	if (starts_with(path + start, size - start, WHITEOUT))
		work->toc->nodes[node].kind = 0;
	entry->node = node;
	hang(work, node);
	return push(work, node, path, size);
}

/* Find the node that each hardlink means in the end. */
static bool resolve(struct lfs_toc *toc)
{
	const struct toc_entry *entry;
	struct toc_node *node;
	uint32_t i, number, steps;

	for (i = 0; i < toc->count; i++) {
		if (toc->entries[i].kind != KIND_HARDLINK)
			continue;
		entry = &toc->entries[i];
		for (steps = 0; entry->kind == KIND_HARDLINK; steps++) {
			number = toc_find(toc, entry->link, entry->link_size);
			if (number == NONE || steps > 8)
				return false;
			entry = &toc->entries[number];
		}
		node = &toc->nodes[entry->node];
		if (entry->kind == KIND_DIRECTORY || node->kind == 0)
			return false;
		toc->nodes[toc->entries[i].node].target = entry->node;
	}
	return true;
}

enum lfs_result toc_plant(struct lfs_toc *toc,
			  const struct lfs_toc_limits *limits)
{
	struct planting *work;
	uint64_t implied = 0;
	uint32_t i = 0;
	bool is_planted;

	if (!sort(toc))
		return LFS_UNUSUAL;
	work = calloc(1, sizeof(*work));
	if (!work)
		return LFS_UNUSUAL;
	work->toc = toc;
	work->stack[0].last_child = work->stack[0].last_whiteout = NONE;
	is_planted = add_node(work, NULL, 0, NONE, KIND_DIRECTORY) == 0;
	if (is_planted && toc->count &&
	    toc->entries[toc->sorted[0]].path_size == 0) {
		toc->nodes[0].entry = toc->sorted[0];
		i++;
	}
	for (; is_planted && i < toc->count; i++)
		is_planted = plant(work, toc->sorted[i], &implied, limits);
	free(work);
	return is_planted && resolve(toc) ? LFS_OK : LFS_UNUSUAL;
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
	if (toc_find(toc, (const uint8_t *)NO_LANDMARK, strlen(NO_LANDMARK)) !=
	    NONE) {
		facts->has_prefetch_end = true;
		return;
	}
	found = toc_find(toc, (const uint8_t *)LANDMARK, strlen(LANDMARK));
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

/* ---- The layer table ----------------------------------------------------- */

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
