/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One layer's tree, from the paths of its entries.  The rules are those of
 * lazyfs/rootfs/{merge,whiteout}.py.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "toc_tree.h"

#include "reading/bytes.h"
#include "toc.h"

#define WHITEOUT ".wh."
#define OPAQUE ".wh..wh..opq"
#define RESERVED ".wh..wh."
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

static int compare_entries(const void *a, const void *b, void *entries)
{
	const struct toc_entry *x = entries, *y = entries;

	x += *(const uint32_t *)a;
	y += *(const uint32_t *)b;
	return lfs_compare_names(x->path, x->path_size, y->path, y->path_size);
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
		   (is_name(node->name, node->name_size, TOC_LANDMARK) ||
		    is_name(node->name, node->name_size, TOC_NO_LANDMARK))) {
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
