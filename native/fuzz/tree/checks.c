/* SPDX-License-Identifier: Apache-2.0 */
/* What the core's reader finds, compared with what was meant. */
#include "checks.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "lazyfs_index.h"
#include "lazyfs_tables.h"
#include "make_layers.h"
#include "model.h"
#include "support.h"
#include "usual.h"
#include "written.h"

static uint64_t find_nid(const struct lfs_index *index, const struct node *node)
{
	const char *at = node->path, *end = at + node->path_size, *slash;
	struct lfs_inode inode;
	uint64_t nid = index->root_nid, parent;

	for (; at < end; at = slash + 1) {
		slash = memchr(at, '/', (size_t)(end - at));
		if (!slash)
			slash = end;
		parent = nid;
		CHECK(lfs_index_inode(index, parent, &inode) == LFS_OK);
		CHECK(lfs_index_lookup(index, &inode, (const uint8_t *)at,
				       (size_t)(slash - at), &nid) == LFS_OK);
	}
	return nid;
}

static uint32_t links_of(const struct model *model, const struct node *node)
{
	uint32_t links = node->is_directory ? 2 : 0;
	const struct node *other;
	size_t i;

	for (i = 0; i < model->count; i++) {
		other = &model->nodes[i];
		if (!node->is_directory)
			links += !other->is_directory &&
				 other->first_layer == node->first_layer &&
				 other->first_item == node->first_item;
		else if (other->is_directory &&
			 made_is_below(other->path, other->path_size, node->path,
				  node->path_size))
			links += !memchr(other->path + node->path_size +
						 (node->path_size > 0),
					 '/',
					 other->path_size - node->path_size -
						 (node->path_size > 0));
	}
	return links;
}

static void check_xattrs(const struct lfs_index *index,
			 const struct lfs_inode *inode, uint8_t expected)
{
	const struct made_xattr *made_one;
	struct lfs_xattrs xattrs;
	struct lfs_xattr xattr;
	unsigned i;

	CHECK(lfs_xattrs_open(&xattrs, index, inode) == LFS_OK);
	for (i = 0; i < MADE_XATTRS; i++) {
		if (!(expected & 1 << i))
			continue;
		made_one = &MADE_XATTR[i];
		CHECK(lfs_xattrs_next(&xattrs, &xattr) == LFS_OK);
		CHECK(lfs_xattr_is(&xattr, made_one->name,
				   strlen(made_one->name)));
		CHECK(xattr.value_size == made_one->size);
		CHECK(!made_one->size || xattr.value[0] == made_one->byte);
	}
	CHECK(lfs_xattrs_next(&xattrs, &xattr) == LFS_ABSENT);
}

static uint32_t check_kind(const struct lfs_index *index,
			   const struct lfs_inode *inode,
			   const struct made_item *item, uint32_t layer)
{
	struct lfs_extent extent;
	const uint8_t *target;
	size_t size;

	switch (item->kind) {
	case 1:
		CHECK(lfs_index_extent(index, inode, &extent) == LFS_OK);
		CHECK(extent.size == item->size);
		CHECK(extent.device == (item->size ? layer + 1 : 0));
		CHECK(extent.offset == item->device_offset);
		return S_IFREG;
	case 3:
	case 4:
		CHECK(inode->rdev == ((item->minor & 0xFF) | item->major << 8 |
				      (item->minor & ~0xFFu) << 12));
		return item->kind == 3 ? S_IFCHR : S_IFBLK;
	case 7:
		CHECK(lfs_index_readlink(index, inode, &target, &size) ==
		      LFS_OK);
		CHECK(size == item->link_size && inode->size == size &&
		      !memcmp(target, item->link, size));
		return S_IFLNK;
	default:
		return item->kind == 2 ? S_IFDIR : S_IFIFO;
	}
}

static void check_node(const struct model *model, const struct lfs_index *index,
		       const struct lfs_provenance *provenance,
		       const struct node *node)
{
	static const struct made_item implied = {.kind = 2, .mode = 0755};
	const struct made_item *item = &implied;
	struct lfs_origin origin;
	struct lfs_inode inode;
	enum lfs_result result;
	uint32_t kind;

	if (node->item != IMPLIED)
		item = &model->made->layers[node->layer].items[node->item];
	CHECK(lfs_index_inode(index, find_nid(index, node), &inode) == LFS_OK);
	kind = check_kind(index, &inode, item, node->layer);
	CHECK(inode.mode == (kind | item->mode));
	CHECK(inode.uid == item->uid && inode.gid == item->gid);
	CHECK(inode.mtime == MADE_TIME[item->time].seconds);
	CHECK(inode.mtime_nanoseconds == MADE_TIME[item->time].nanoseconds);
	CHECK(inode.nlink == links_of(model, node));
	check_xattrs(index, &inode, item->xattrs);
	result = lfs_provenance_of(provenance, inode.nid, &origin);
	CHECK(result == (item == &implied ? LFS_ABSENT : LFS_OK));
	if (result == LFS_OK)
		CHECK(origin.layer == node->layer &&
		      (item->kind == 1 || !origin.digest));
}

/* Walk the whole index; returns how many names it has beside the dots. */
static size_t count_names(const struct lfs_index *index)
{
	static struct {
		uint64_t nid, parent;
	} pending[MAX_NODES];
	size_t left = 1, names = 0, last_size;
	const uint8_t *last;
	struct lfs_entries entries;
	struct lfs_inode inode;
	struct lfs_entry entry;
	enum lfs_result result;
	unsigned dots;
	int order;

	pending[0].nid = pending[0].parent = index->root_nid;
	while (left--) {
		uint64_t nid = pending[left].nid, above = pending[left].parent;

		CHECK(lfs_index_inode(index, nid, &inode) == LFS_OK);
		CHECK(lfs_entries_open(&entries, index, &inode, 0) == LFS_OK);
		last = NULL;
		last_size = dots = 0;
		while ((result = lfs_entries_next(&entries, &entry)) ==
		       LFS_OK) {
			if (last) {
				order = memcmp(last, entry.name,
					       last_size < entry.name_size
						       ? last_size
						       : entry.name_size);
				CHECK(order < 0 ||
				      (!order && last_size < entry.name_size));
			}
			last = entry.name;
			last_size = entry.name_size;
			if (entry.name_size <= 2 &&
			    !memcmp(entry.name, "..", entry.name_size)) {
				CHECK(entry.nid ==
				      (entry.name_size == 1 ? nid : above));
				dots++;
				continue;
			}
			names++;
			if (entry.kind != 2)
				continue;
			CHECK(left < MAX_NODES);
			pending[left].nid = entry.nid;
			pending[left++].parent = nid;
		}
		CHECK(result == LFS_ABSENT && dots == 2);
	}
	return names;
}

void check_table(const struct lfs_toc *toc, const struct made_layer *layer)
{
	struct lfs_toc_extent extent;
	struct lfs_toc_facts facts;
	uint64_t first, last, place = 0;
	struct lfs_table table;
	uint8_t *records;
	size_t i;

	lfs_toc_facts(toc, &facts);
	CHECK(facts.chunk_count == layer->chunk_count);
	CHECK(facts.entry_count == layer->count);
	CHECK(facts.device_size == layer->device_size);
	records = calloc(facts.chunk_count + 1, LFS_RECORD_SIZE);
	CHECK(records);
	CHECK(lfs_toc_table(toc, 1 << 30, records, &extent) == LFS_OK);
	table.records = records;
	table.count = facts.chunk_count;
	table.device_size = facts.device_size;
	for (i = 0; i < layer->count; i++) {
		if (!layer->items[i].chunk_count)
			continue;
		CHECK(lfs_table_covering(&table, layer->items[i].device_offset,
					 layer->items[i].device_offset +
						 layer->items[i].size,
					 &first, &last) == LFS_OK);
		CHECK(first == place);
		place = first + layer->items[i].chunk_count;
		CHECK(last == place);
	}
	free(records);
}

void check_written(const struct made_layers *made, struct lfs_toc *const *tocs)
{
	static struct model model;
	struct lfs_provenance provenance;
	struct written written;
	struct lfs_index index;
	size_t i;

	model_merge(&model, made);
	write_all(made, tocs, &written);
	CHECK(lfs_index_open(&index, written.image, written.image_size) ==
	      LFS_OK);
	CHECK(lfs_provenance_open(&provenance, written.provenance,
				  written.provenance_size) == LFS_OK);
	for (i = 0; i < model.count; i++)
		check_node(&model, &index, &provenance, &model.nodes[i]);
	CHECK(count_names(&index) + 1 == model.count);
	free(written.image);
	free(written.provenance);
}
