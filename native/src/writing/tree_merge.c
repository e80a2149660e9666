/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layers' trees laid over each other.  The rules are those of
 * lazyfs/rootfs/merge.py.
 */
#include <stdlib.h>
#include <string.h>

#include "lazyfs_tree.h"
#include "toc.h"
#include "tree.h"

#define MAX_NAME_SIZE 255
#define MAX_LAYERS 0xFFFE
#define MAX_DEPTH 1024

static uint32_t moved(uint32_t number, uint32_t base)
{
	return number == NONE ? NONE : number + base;
}

static void copy_nodes(struct lfs_tree *tree, uint32_t layer, uint32_t base)
{
	const struct lfs_toc *toc = tree->tocs[layer];
	struct inode *inode;
	uint32_t i;

	for (i = 0; i < toc->node_count; i++) {
		inode = &tree->inodes[base + i];
		inode->node = toc->nodes[i];
		inode->node.first_child = moved(inode->node.first_child, base);
		inode->node.next = moved(inode->node.next, base);
		inode->node.first_whiteout =
			moved(inode->node.first_whiteout, base);
		inode->node.target = moved(inode->node.target, base);
		inode->layer = layer;
	}
}

/* Remove from the directory 'lower' what 'upper' hides. */
static void hide(struct lfs_tree *tree, uint32_t lower, uint32_t upper)
{
	struct inode *inodes = tree->inodes;
	uint32_t white = inodes[upper].node.first_whiteout;
	uint32_t *link = &inodes[lower].node.first_child;
	int order;

	if (inodes[upper].node.is_opaque) {
		*link = NONE;
		return;
	}
	while (white != NONE && *link != NONE) {
		order = tree_compare_names(&inodes[*link].node,
					   &inodes[white].node);
		if (order < 0) {
			link = &inodes[*link].node.next;
			continue;
		}
		if (order == 0)
			*link = inodes[*link].node.next;
		white = inodes[white].node.next;
	}
}

/* Lay the tree of 'upper' over that of 'lower', which becomes the result.
 * 'pairs' has room for two numbers for each node of the upper layer. */
static void lay_over(struct lfs_tree *tree, uint32_t lower, uint32_t upper,
		     uint32_t *pairs)
{
	struct inode *inodes = tree->inodes;
	size_t pending = 0;
	uint32_t *link, above, after;
	int order;

	pairs[pending++] = lower;
	pairs[pending++] = upper;
	while (pending) {
		upper = pairs[--pending];
		lower = pairs[--pending];
		hide(tree, lower, upper);
		if (inodes[upper].node.entry != NONE) {
			inodes[lower].node.entry = inodes[upper].node.entry;
			inodes[lower].layer = inodes[upper].layer;
		}
		link = &inodes[lower].node.first_child;
		above = inodes[upper].node.first_child;
		while (above != NONE) {
			order = *link == NONE ? 1
					      : tree_compare_names(
							&inodes[*link].node,
							&inodes[above].node);
			if (order < 0) {
				link = &inodes[*link].node.next;
				continue;
			}
			after = inodes[above].node.next;
			if (order == 0 &&
			    inodes[*link].node.kind == KIND_DIRECTORY &&
			    inodes[above].node.kind == KIND_DIRECTORY) {
				pairs[pending++] = *link;
				pairs[pending++] = above;
			} else {
				inodes[above].node.next =
					order == 0 ? inodes[*link].node.next
						   : *link;
				*link = above;
			}
			link = &inodes[*link].node.next;
			above = after;
		}
	}
}

/* Note an inode that is met for the first time. */
static void enlist(struct lfs_tree *tree, uint32_t number)
{
	tree->order[tree->order_count++] = number;
	if (tree->inodes[number].node.entry != NONE)
		tree->provenance_count++;
}

/* Find the order of the inodes, depth first, and their numbers of names. */
static bool walk(struct lfs_tree *tree)
{
	struct inode *inodes = tree->inodes, *child;
	uint32_t next[MAX_DEPTH + 2], above[MAX_DEPTH + 2], number;
	uint32_t children[MAX_DEPTH + 2];
	unsigned depth = 0;

	enlist(tree, 0);
	inodes[0].nlink = 2;
	next[0] = inodes[0].node.first_child;
	above[0] = children[0] = 0;
	for (;;) {
		number = next[depth];
		if (number == NONE) {
			if (children[depth] > tree->most_children)
				tree->most_children = children[depth];
			if (depth-- == 0)
				return true;
			continue;
		}
		if (inodes[number].node.name_size > MAX_NAME_SIZE)
			return false;
		next[depth] = inodes[number].node.next;
		children[depth]++;
		if (inodes[number].node.kind == KIND_HARDLINK)
			number = inodes[number].node.target;
		child = &inodes[number];
		if (child->node.kind != KIND_DIRECTORY) {
			if (child->nlink++ == 0)
				enlist(tree, number);
			continue;
		}
		enlist(tree, number);
		child->nlink = 2;
		child->parent = above[depth];
		inodes[above[depth]].nlink++;
		if (depth > MAX_DEPTH)
			return false;
		depth++;
		next[depth] = child->node.first_child;
		above[depth] = number;
		children[depth] = 0;
	}
}

enum lfs_result lfs_tree_merge(struct lfs_tree **out,
			       struct lfs_toc *const *tocs, size_t count)
{
	uint64_t total = 0, most = 0;
	struct lfs_tree *tree;
	uint32_t *pairs = NULL, base = 0;
	bool is_merged = false;
	size_t i;

	if (count > MAX_LAYERS || !count)
		return LFS_UNUSUAL;
	for (i = 0; i < count; i++) {
		total += tocs[i]->node_count;
		if (tocs[i]->node_count > most)
			most = tocs[i]->node_count;
	}
	tree = total < NONE / 2 ? calloc(1, sizeof(*tree)) : NULL;
	if (!tree)
		return LFS_UNUSUAL;
	tree->tocs = tocs;
	tree->count = (uint32_t)total;
	tree->inodes = calloc(total, sizeof(*tree->inodes));
	tree->order = malloc(total * sizeof(*tree->order));
	pairs = malloc((2 * most + 2) * sizeof(*pairs));
	if (tree->inodes && tree->order && pairs) {
		for (i = 0; i < count; i++) {
			copy_nodes(tree, (uint32_t)i, base);
			if (i)
				lay_over(tree, 0, base, pairs);
			base += tocs[i]->node_count;
		}
		is_merged = walk(tree);
	}
	free(pairs);
	if (!is_merged) {
		lfs_tree_free(tree);
		return LFS_UNUSUAL;
	}
	*out = tree;
	return LFS_OK;
}

void lfs_tree_free(struct lfs_tree *tree)
{
	if (!tree)
		return;
	free(tree->inodes);
	free(tree->order);
	free(tree);
}

size_t lfs_tree_xattrs(const struct lfs_tree *tree,
		       struct lfs_tree_place *places, size_t max)
{
	const struct toc_entry *entry;
	const struct inode *inode;
	size_t found = 0;
	uint32_t i;

	for (i = 0; i < tree->order_count; i++) {
		inode = &tree->inodes[tree->order[i]];
		entry = tree_entry(tree, inode);
		if (!entry || !entry->xattrs)
			continue;
		if (found < max) {
			places[found].layer = inode->layer;
			places[found].entry = inode->node.entry;
		}
		found++;
	}
	return found;
}
