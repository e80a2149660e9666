/* SPDX-License-Identifier: Apache-2.0 */
/* Layers made of a fuzzer's bytes: what they hold, and the JSON that says so. */
#ifndef LAZYFS_MAKE_LAYERS_H
#define LAZYFS_MAKE_LAYERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_MADE_LAYERS 4
#define MAX_MADE_ITEMS 900 /* of a layer */
#define MADE_XATTRS 6
#define MADE_TIMES 8

struct made_xattr {
	const char *name;
	unsigned prefix; /* EROFS' number of what the name begins with */
	const char *rest;
	uint8_t byte; /* of which the value is made */
	unsigned size;
};

struct made_time {
	const char *text;
	int64_t seconds;
	uint32_t nanoseconds;
};

extern const struct made_xattr MADE_XATTR[MADE_XATTRS];
extern const struct made_time MADE_TIME[MADE_TIMES];

/* An entry; paths are normalised, with slashes.  The kinds are EROFS', and 8
 * for a hardlink. */
struct made_item {
	const char *path, *link;
	size_t path_size, link_size;
	uint64_t size, device_offset;
	uint32_t chunk_count, mode, uid, gid, major, minor;
	uint8_t kind, time, xattrs; /* a bit for each of MADE_XATTR */
	bool is_odd; /* a path or link that the core leaves to its twin */
};

struct made_layer {
	struct made_item items[MAX_MADE_ITEMS];
	size_t count;
	uint64_t device_size, chunk_count;
	char *json;
	size_t json_size;
};

struct made_layers {
	struct made_layer layers[MAX_MADE_LAYERS];
	size_t count;
};

/* make_layers() makes at least one layer of any bytes, and always the same ones
 * of the same bytes.  They stay until it is called again. */
void make_layers(struct made_layers *made, const uint8_t *data, size_t size);

bool made_begins(const char *name, const char *prefix);
const char *made_name(const char *path); /* the last one of a path */
bool made_is_below(const char *path, size_t size, const char *above,
		   size_t above_size);

/* made_target() returns what a hardlink means in the end; NULL: nothing, or not
 * soon enough. */
const struct made_item *made_target(const struct made_layer *layer,
				    const struct made_item *item);

/* made_is_usual() says whether the core takes a layer, or leaves it to Python. */
bool made_is_usual(const struct made_layer *layer);

#endif /* LAZYFS_MAKE_LAYERS_H */
