/* SPDX-License-Identifier: Apache-2.0 */
/* Layers as the core writes them, with superblock and attributes added. */
#include "written.h"

#include <stdlib.h>
#include <string.h>

#include "lazyfs_tree.h"
#include "make_layers.h"
#include "support.h"

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

void write_all(const struct made_layers *made, struct lfs_toc *const *tocs,
	       struct written *out)
{
	enum { BODY_ROOM = 4608 };
	struct lfs_tree *merged;
	struct lfs_tree_place *places;
	struct lfs_body *bodies;
	uint64_t image_size, records_size;
	uint8_t *room;
	size_t count, i;

	CHECK(lfs_tree_merge(&merged, tocs, made->count) == LFS_OK);
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
				 &made->layers[places[i].layer]
					  .items[places[i].entry]);
	}
	CHECK(lfs_tree_number(merged, (1152 + 128 * made->count + 31) / 32 * 32,
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
	put_superblock(out->image, image_size, (unsigned)made->count);
	put_number(out->image + 1024 + 14, lfs_tree_root(merged), 2);
	lfs_tree_free(merged);
	free(places);
	free(bodies);
	free(room);
}
