/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A grammar of layers.  Each byte of the input decides one thing; an input that
 * has ended gives zeros, so that a prefix of an input means much the same.
 *
 *   make_layers.c   the entries
 *   paths.c         their paths
 *   maker.c         the bytes that decide, and the JSON
 *   usual.c         which layers the core takes
 *   layers.h        what is made
 */
#include "make_layers.h"

#include <string.h>

#include "maker.h"
#include "paths.h"
#include "support.h"
#include "usual.h"

#define D64 "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

const struct made_xattr MADE_XATTR[MADE_XATTRS] = {
	{"user.a", 1, "a", 0, 3},
	{"user.empty", 1, "empty", 0, 0},
	{"trusted.t", 4, "t", 0xFF, 3},
	{"security.other", 6, "other", 0, 21},
	{"user.large", 1, "large", 0xFF, 3900},
	{"user.\xc3\xa9", 1, "\xc3\xa9", 0, 300},
};

const struct made_time MADE_TIME[MADE_TIMES] = {
	{NULL, 0, 0},
	{"1970-01-01T00:00:00Z", 0, 0},
	{"1969-12-31T23:59:59.5Z", -1, 500000000},
	{"2024-02-29T12:00:00.123456789Z", 1709208000, 123456789},
	{"2000-02-29T00:00:00Z", 951782400, 0},
	{"0001-01-01T00:00:00Z", -62135596800, 0},
	{"9999-12-31T23:59:59.999999999Z", 253402300799, 999999999},
	{"2038-01-19T03:14:08Z", 2147483648, 0},
};

static const uint32_t SIZES[] = {0,    1,     10,    4095, 4096,
				 4097, 65536, 70001, 0,	   1u << 20};
static const uint32_t LINK_SIZES[] = {1,    5,	  60,	4000, 4031, 4032,
				      4033, 4094, 4095, 20,   3000, 4096};
static const uint32_t IDS[] = {0, 1, 1000, 65536, 0x7FFFFFFF, 0xFFFFFFFE};

static void put_payload(struct maker *in, struct made_item *item)
{
	struct made_layer *layer = in->layer;
	uint8_t how = next(in);
	uint64_t part, place;

	item->size = SIZES[how % 10];
	put(in, ",\"size\":%llu,\"digest\":\"sha256:" D64 "\"",
	    (unsigned long long)item->size);
	if (!item->size)
		return;
	item->device_offset = layer->device_size;
	layer->device_size += (item->size + 4095) / 4096 * 4096;
	part = how < 160 ? 0 : item->size / (1 + how % 3) + how % 2;
	put(in, ",\"offset\":%u,\"chunkSize\":%llu,\"chunkDigest\":\"sha256:" D64
		"\"",
	    (unsigned)(100 + 50 * layer->count), (unsigned long long)part);
	item->chunk_count = 1;
	for (place = part; part && place < item->size; place += part) {
		if (part > item->size - place)
			part = item->size - place;
		put(in, "},{\"name\":\"any\",\"type\":\"chunk\",\"offset\":%u,"
			"\"chunkOffset\":%llu,\"chunkSize\":%llu,"
			"\"innerOffset\":%u,\"chunkDigest\":\"sha256:" D64 "\"",
		    (unsigned)(100 + 50 * layer->count + how % 40),
		    (unsigned long long)place,
		    (unsigned long long)(how % 4 ? part : 0),
		    item->chunk_count * (how % 2));
		item->chunk_count++;
		if (how % 4 == 0)
			break; /* 0 stands for all the rest */
	}
	layer->chunk_count += item->chunk_count;
}

static void put_link(struct maker *in, struct made_item *item)
{
	static char text[MAX_PATH_TEXT];
	uint8_t how = next(in);
	size_t size = 0;

	if (item->kind == 8) {
		if (how % 4 && in->layer->count) {
			add(text, &size,
			    in->layer->items[how % in->layer->count].path);
		} else {
			size = make_path(in, text);
		}
		if (!keep_path(in, text, size, &item->link, &item->link_size))
			item->is_odd = true;
	} else {
		for (size = LINK_SIZES[how % 12]; size < 4; size++)
			;
		memset(text, 'l', size);
		memcpy(text, "../x", 4);
		size = LINK_SIZES[how % 12];
		item->link = keep(in, text, size);
		item->link_size = size;
		item->is_odd |= size > 4095;
	}
	put(in, ",\"linkName\":");
	put_text(in, text, size, how % 4);
}

static void put_xattrs(struct maker *in, struct made_item *item)
{
	const char *comma = "";
	unsigned i, n;

	item->xattrs = next(in) & ((1 << MADE_XATTRS) - 1);
	put(in, ",\"xattrs\":{");
	for (i = 0; i < MADE_XATTRS; i++) {
		if (!(item->xattrs & 1 << i))
			continue;
		put(in, "%s\"%s\":\"", comma, MADE_XATTR[i].name);
		for (n = 0; n < MADE_XATTR[i].size / 3 * 4; n++)
			put_byte(in, MADE_XATTR[i].byte ? '/' : 'A');
		put(in, "\"");
		comma = ",";
	}
	put(in, "}");
}

/* Is the last item usual, and are the others still? */
static bool fits(const struct made_layer *layer)
{
	const struct made_item *item = &layer->items[layer->count - 1];
	size_t i;

	if (!made_is_usual_item(layer, layer->count - 1))
		return false;
	for (i = 0; item->kind != 2 && i < layer->count; i++)
		if (made_is_below(layer->items[i].path,
				  layer->items[i].path_size, item->path,
				  item->path_size))
			return false;
	return true;
}

static void put_item(struct maker *in, const char *text, size_t size,
		     uint8_t kind)
{
	static const char *const types[] = {
		"",	"reg",	   "dir",     "char", "block",
		"fifo", "fifo", "symlink", "hardlink",
	};
	struct made_layer *layer = in->layer;
	struct made_item *item = &layer->items[layer->count];
	uint64_t device_size = layer->device_size;
	uint64_t chunk_count = layer->chunk_count;
	size_t json_size = layer->json_size;
	uint8_t has = next(in), how;

	if (layer->count == MAX_MADE_ITEMS || in->is_full ||
	    JSON_ROOM - layer->json_size < (100u << 10))
		return;
	memset(item, 0, sizeof(*item));
	item->kind = kind;
	item->is_odd =
		!keep_path(in, text, size, &item->path, &item->path_size);
	put(in, "%s\n{\"name\":", layer->count ? "," : "");
	put_text(in, text, size, has % 4);
	put(in, ",\"type\":\"%s\"", types[kind]);
	if (has & 4) {
		how = next(in);
		item->mode = (how * 0x9E3779B1u) & 07777;
		item->uid = IDS[how % 6];
		item->gid = IDS[how / 6 % 6];
		put(in, ",\"mode\":%u,\"uid\":%u,\"gid\":%u",
		    item->mode | (how & 1 ? 0100000u : 0), item->uid,
		    item->gid);
	}
	if (has & 8) {
		item->time = next(in) % MADE_TIMES;
		if (item->time)
			put(in, ",\"modtime\":\"%s\"",
			    MADE_TIME[item->time].text);
	}
	if (has & 16)
		put_xattrs(in, item);
	if (kind == 3 || kind == 4) {
		how = next(in);
		item->major = how & 1 ? how : 4095u - how;
		item->minor = how & 2 ? how : (1u << 20) - 1 - how;
		put(in, ",\"devMajor\":%u,\"devMinor\":%u", item->major,
		    item->minor);
	} else if (kind == 7 || kind == 8) {
		put_link(in, item);
	} else if (kind == 1) {
		put_payload(in, item);
	}
	put(in, "}");
	layer->count++;
	if (in->is_careful && !fits(layer)) {
		layer->count--;
		layer->json_size = json_size;
		layer->device_size = device_size;
		layer->chunk_count = chunk_count;
	}
}

/* Many names in one directory; their number and length come from two bytes. */
static void put_many(struct maker *in, char *text)
{
	size_t size = make_path(in, text), start;
	static const uint8_t kinds[] = {1, 3, 5};
	unsigned count = next(in), i, width = 1 + next(in) % 200;

	add(text, &size, "/n");
	start = size;
	for (i = 0; i < count; i++) {
		size = start;
		size += (size_t)snprintf(text + start, 256, "%0*u", (int)width,
					 i);
		put_item(in, text, size, i % 16 == 15 ? 2 : kinds[i % 3]);
	}
}

static void put_deep(struct maker *in, char *text)
{
	unsigned depth = 1 + next(in) * 4u;
	size_t size = 0;

	if (depth > 1021) /* 1,021 to 1,025: the limit is 1,024 */
		depth = 1021 + next(in) % 5;
	while (--depth)
		add(text, &size, "d/");
	add_name(in, text, &size);
	put_item(in, text, size, next(in) % 2 ? 1 : 2);
}

static void make_layer(struct maker *in)
{
	static const uint8_t kinds[] = {1, 2, 7, 8, 3, 4, 5, 1, 1, 2, 8, 7};
	static char text[MAX_PATH_TEXT + 256];
	uint8_t first = next(in);
	unsigned left = first % 48;
	struct made_layer *layer = in->layer;
	uint8_t what;

	in->is_careful = first < 192;
	layer->count = 0;
	layer->device_size = layer->chunk_count = layer->json_size = 0;
	put(in, "{\"version\":1,\"entries\":[");
	while (left-- && in->size) {
		what = next(in);
		if (what < 240)
			put_item(in, text, make_path(in, text),
				 kinds[what % 12]);
		else if (what < 244)
			put_item(in, "./", what % 3, 2);
		else if (what < 248)
			put_deep(in, text);
		else
			put_many(in, text);
	}
	put(in, "]}");
}

void make_layers(struct made_layers *made, const uint8_t *data, size_t size)
{
	static char room[ROOM], json[MAX_MADE_LAYERS][JSON_ROOM];
	struct maker in = {.data = data, .size = size, .room = room};
	size_t i;

	made->count = 1 + next(&in) % MAX_MADE_LAYERS;
	for (i = 0; i < made->count; i++) {
		in.layer = &made->layers[i];
		in.layer->json = json[i];
		make_layer(&in);
	}
}
