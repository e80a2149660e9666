/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stacks of layers, merged and written by the core, read back by its reader, and
 * compared with a tree of plain paths.  The core must take exactly the layers
 * that it is said to take: what it leaves to its twin costs every mount time.
 *
 * LAZYFS_FUZZ_OUTPUT names a directory for the layers' JSON, NUMBER.LAYER.json:
 * tools/fuzz_tree.py gives them to others to judge.
 */
#include "fuzz.h"

#include <string.h>
#include <sys/stat.h>

#include "make_layers.h"
#include "support.h"

#define IMPLIED UINT32_MAX
#define MAX_NODES (MAX_MADE_LAYERS * (MAX_MADE_ITEMS + 6000))

/* A name of the merged tree; 'item' is what a hardlink means in the end. */
struct node {
	const char *path;
	size_t path_size;
	uint32_t layer, item; /* of what it says */
	uint32_t first_layer, first_item; /* which inode it is */
	bool is_directory;
};

static struct made_layers made;
static struct node tree[MAX_NODES], upper[MAX_NODES];
static size_t tree_count, upper_count;

/* ---- The merged tree ----------------------------------------------------- */

static struct node *find_node(struct node *nodes, size_t count,
			      const char *path, size_t size)
{
	size_t i;

	for (i = 0; i < count; i++)
		if (nodes[i].path_size == size &&
		    !memcmp(nodes[i].path, path, size))
			return &nodes[i];
	return NULL;
}

/* Remove what is below a path, and with 'is_whole' the path too. */
static void prune(struct node *nodes, size_t *count, const char *path,
		  size_t size, bool is_whole)
{
	size_t i, left = 0;

	for (i = 0; i < *count; i++) {
		if (made_is_below(nodes[i].path, nodes[i].path_size, path, size) ||
		    (is_whole && nodes[i].path_size == size &&
		     !memcmp(nodes[i].path, path, size)))
			continue;
		nodes[left++] = nodes[i];
	}
	*count = left;
}

static struct node *add_node(struct node *nodes, size_t *count,
			     const char *path, size_t size, uint32_t layer,
			     uint32_t item, bool is_directory)
{
	CHECK(*count < MAX_NODES);
	nodes[*count] = (struct node){.path = path,
				      .path_size = size,
				      .layer = layer,
				      .item = item,
				      .first_layer = layer,
				      .first_item = item,
				      .is_directory = is_directory};
	return &nodes[(*count)++];
}

/* List what a layer has of its own, directories before what is in them. */
static void list_layer(uint32_t number)
{
	static const char *const landmarks[] = {".prefetch.landmark",
						".no.prefetch.landmark"};
	const struct made_layer *layer = &made.layers[number];
	const struct made_item *item;
	struct node *node;
	size_t i, at;

	upper_count = 0;
	add_node(upper, &upper_count, "", 0, number, IMPLIED, true);
	for (i = 0; i < layer->count; i++) {
		item = &layer->items[i];
		for (at = 0; at < item->path_size; at++)
			if (item->path[at] == '/' &&
			    !find_node(upper, upper_count, item->path, at))
				add_node(upper, &upper_count, item->path, at,
					 number, IMPLIED, true);
		if (made_begins(made_name(item->path), ".wh."))
			continue;
		node = find_node(upper, upper_count, item->path,
				 item->path_size);
		if (node) {
			node->item = (uint32_t)i;
			continue;
		}
		if (item->kind == 8)
			item = made_target(layer, item);
		add_node(upper, &upper_count, layer->items[i].path,
			 layer->items[i].path_size, number,
			 (uint32_t)(item - layer->items), item->kind == 2);
	}
	for (i = 0; i < 2; i++)
		prune(upper, &upper_count, landmarks[i], strlen(landmarks[i]),
		      true);
}

/* Remove what a layer's whiteouts name of the layers below it. */
static void white_out(const struct made_layer *layer)
{
	static char path[8192];
	const struct made_item *item;
	struct node *node;
	const char *name;
	size_t i, head;

	for (i = 0; i < layer->count; i++) {
		item = &layer->items[i];
		name = made_name(item->path);
		if (!made_begins(name, ".wh."))
			continue;
		head = (size_t)(name - item->path);
		memcpy(path, item->path, head);
		if (!strcmp(name, ".wh..wh..opq")) {
			head -= head > 0;
			node = find_node(tree, tree_count, path, head);
			if (node && node->is_directory)
				prune(tree, &tree_count, path, head, false);
		} else if (!made_begins(name, ".wh..wh.")) {
			strcpy(path + head, name + 4);
			prune(tree, &tree_count, path, strlen(path), true);
		}
	}
}

static int compare_depth(const void *a, const void *b)
{
	const struct node *x = a, *y = b;

	return (x->path_size > y->path_size) - (x->path_size < y->path_size);
}

static void merge(void)
{
	struct node *old, *node;
	uint32_t number;
	size_t i;

	tree_count = 0;
	add_node(tree, &tree_count, "", 0, 0, IMPLIED, true);
	for (number = 0; number < made.count; number++) {
		white_out(&made.layers[number]);
		list_layer(number);
		qsort(upper, upper_count, sizeof(*upper), compare_depth);
		for (i = 0; i < upper_count; i++) {
			node = &upper[i];
			old = find_node(tree, tree_count, node->path,
					node->path_size);
			if (old && old->is_directory && node->is_directory) {
				if (node->item != IMPLIED) {
					old->layer = node->layer;
					old->item = node->item;
				}
				continue;
			}
			if (old)
				prune(tree, &tree_count, node->path,
				      node->path_size, true);
			CHECK(tree_count < MAX_NODES);
			tree[tree_count++] = *node;
		}
	}
}

/* ---- Written, and read back ---------------------------------------------- */

struct written {
	uint8_t *image, *provenance;
	size_t image_size, provenance_size;
	uint64_t inode_count;
};

/* Write the body of the attributes of an entry. */
static size_t put_body(uint8_t *body, const struct made_item *item)
{
	const struct made_xattr *xattr;
	size_t used = 12, rest;
	unsigned i;

	for (i = 0; i < MADE_XATTRS; i++) {
		if (!(item->xattrs & 1 << i))
			continue;
		xattr = &MADE_XATTR[i];
		rest = strlen(xattr->rest);
		body[used] = (uint8_t)rest;
		body[used + 1] = (uint8_t)xattr->prefix;
		put_number(body + used + 2, xattr->size, 2);
		memcpy(body + used + 4, xattr->rest, rest);
		memset(body + used + 4 + rest, xattr->byte, xattr->size);
		used = (used + 4 + rest + xattr->size + 3) & ~(size_t)3;
	}
	return used;
}

static void write_all(struct lfs_toc *const *tocs, struct written *out)
{
	enum { BODY_ROOM = 4608 };
	struct lfs_tree *merged;
	struct lfs_tree_place *places;
	struct lfs_body *bodies;
	uint64_t image_size, records_size;
	uint8_t *room;
	size_t count, i;

	CHECK(lfs_tree_merge(&merged, tocs, made.count) == LFS_OK);
	count = lfs_tree_xattrs(merged, NULL, 0);
	places = calloc(count + 1, sizeof(*places));
	bodies = calloc(count + 1, sizeof(*bodies));
	room = calloc(count + 1, BODY_ROOM);
	CHECK(places && bodies && room);
	CHECK(lfs_tree_xattrs(merged, places, count) == count);
	for (i = 0; i < count; i++) {
		bodies[i].bytes = room + i * BODY_ROOM;
		bodies[i].size =
			put_body(room + i * BODY_ROOM,
				 &made.layers[places[i].layer]
					  .items[places[i].entry]);
	}
	CHECK(lfs_tree_number(merged, (1152 + 128 * made.count + 31) / 32 * 32,
			      bodies, count, NULL) == LFS_OK);
	lfs_tree_sizes(merged, &out->inode_count, &image_size, &records_size);
	out->image_size = image_size;
	out->provenance_size = 64 + records_size;
	out->image = calloc(1, image_size);
	out->provenance = calloc(1, out->provenance_size);
	CHECK(out->image && out->provenance);
	CHECK(lfs_tree_write(merged, out->image, out->provenance + 32) ==
	      LFS_OK);
	memcpy(out->provenance, "LFSPROV1", 8);
	put_number(out->provenance + 8, 40, 4);
	put_number(out->provenance + 16, records_size / 40, 8);
	put_superblock(out->image, image_size, (unsigned)made.count);
	put_number(out->image + 1024 + 14, lfs_tree_root(merged), 2);
	lfs_tree_free(merged);
	free(places);
	free(bodies);
	free(room);
}

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

static uint32_t links_of(const struct node *node)
{
	uint32_t links = node->is_directory ? 2 : 0;
	const struct node *other;
	size_t i;

	for (i = 0; i < tree_count; i++) {
		other = &tree[i];
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

static void check_node(const struct lfs_index *index,
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
		item = &made.layers[node->layer].items[node->item];
	CHECK(lfs_index_inode(index, find_nid(index, node), &inode) == LFS_OK);
	kind = check_kind(index, &inode, item, node->layer);
	CHECK(inode.mode == (kind | item->mode));
	CHECK(inode.uid == item->uid && inode.gid == item->gid);
	CHECK(inode.mtime == MADE_TIME[item->time].seconds);
	CHECK(inode.mtime_nanoseconds == MADE_TIME[item->time].nanoseconds);
	CHECK(inode.nlink == links_of(node));
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

/* Every byte of a file is in a record of the layer's table, and nothing else. */
static void check_table(const struct lfs_toc *toc,
			const struct made_layer *layer)
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

static void check_written(struct lfs_toc *const *tocs)
{
	struct lfs_provenance provenance;
	struct written written;
	struct lfs_index index;
	size_t i;

	merge();
	write_all(tocs, &written);
	CHECK(lfs_index_open(&index, written.image, written.image_size) ==
	      LFS_OK);
	CHECK(lfs_provenance_open(&provenance, written.provenance,
				  written.provenance_size) == LFS_OK);
	for (i = 0; i < tree_count; i++)
		check_node(&index, &provenance, &tree[i]);
	CHECK(count_names(&index) + 1 == tree_count);
	free(written.image);
	free(written.provenance);
}

static void show(void)
{
	const char *folder = getenv("LAZYFS_FUZZ_OUTPUT");
	static unsigned number;
	char path[4096];
	FILE *file;
	size_t i;

	for (i = 0; folder && i < made.count; i++) {
		snprintf(path, sizeof(path), "%s/%06u.%zu.json", folder, number,
			 i);
		file = fopen(path, "w");
		CHECK(file);
		CHECK(fwrite(made.layers[i].json, 1, made.layers[i].json_size,
			     file) == made.layers[i].json_size);
		CHECK(fclose(file) == 0);
	}
	number++;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct lfs_toc_limits limits = {
		.blob_size = 1 << 30,
		.ratio = 1032,
		.entries = 1000000,
		.path_size = 4095,
		.component_size = 255,
		.depth = 1024,
		.implied_size = 64 << 20,
		.link_size = 4095,
		.chunk_size = 1 << 28,
		.stream_size = 1 << 30,
		.device_size = (uint64_t)1 << 44,
		.block_size = 4096,
		.codec = 1,
	};
	struct lfs_toc *tocs[MAX_MADE_LAYERS] = {NULL};
	bool all_usual = true;
	uint8_t *json;
	size_t i;

	make_layers(&made, data, size);
	show();
	for (i = 0; i < made.count; i++) {
		const struct made_layer *layer = &made.layers[i];
		enum lfs_result result;
		bool usual = made_is_usual(layer);

		json = (uint8_t *)layer->json; /* read in place */
		result = lfs_toc_scan(&tocs[i], json, layer->json_size,
				      &limits);
		CHECK(result == (usual ? LFS_OK : LFS_UNUSUAL));
		if (usual)
			check_table(tocs[i], layer);
		all_usual = all_usual && usual;
	}
	if (all_usual)
		check_written(tocs);
	for (i = 0; i < made.count; i++)
		lfs_toc_free(tocs[i]);
	return 0;
}

size_t fuzz_seed(uint8_t *data, size_t max)
{
	size_t size;

	CHECK(max >= 1200);
	for (size = 0; size < 1200; size++)
		data[size] = (uint8_t)random_number();
	data[0] = 2;
	return size;
}
