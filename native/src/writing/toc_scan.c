/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON of a table of contents, read into entries.  What lazyfs/formats/
 * {rawtoc,toc}.py accept is the rule; this accepts less, and never anything
 * else: all that is rare or wrong is LFS_UNUSUAL, and theirs to judge.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "toc.h"
#include "toc_json.h"
#include "toc_tree.h"
#include "toc_values.h"

struct reader {
	struct json json;
	struct lfs_toc *toc;
	const struct lfs_toc_limits *limits;
	struct toc_time time;
};

enum key {
	NAME,
	TYPE,
	SIZE,
	MODTIME,
	LINK_NAME,
	MODE,
	UID,
	GID,
	USER_NAME,
	GROUP_NAME,
	OFFSET,
	INNER_OFFSET,
	DEV_MAJOR,
	DEV_MINOR,
	XATTRS,
	DIGEST,
	CHUNK_OFFSET,
	CHUNK_SIZE,
	CHUNK_DIGEST,
	END_OFFSET,
	ACCESS_TIME,
	CHANGE_TIME,
	KEY_COUNT,
};

/* What a number may be at most; 0 for a text. */
static const struct {
	const char *name;
	uint64_t most;
} KEYS[KEY_COUNT] = {
	[NAME] = {"name", 0},
	[TYPE] = {"type", 0},
	[SIZE] = {"size", INT64_MAX},
	[MODTIME] = {"modtime", 0},
	[LINK_NAME] = {"linkName", 0},
	[MODE] = {"mode", INT64_MAX},
	[UID] = {"uid", UINT32_MAX},
	[GID] = {"gid", UINT32_MAX},
	[USER_NAME] = {"userName", 0},
	[GROUP_NAME] = {"groupName", 0},
	[OFFSET] = {"offset", INT64_MAX},
	[INNER_OFFSET] = {"innerOffset", INT64_MAX},
	[DEV_MAJOR] = {"devMajor", (1 << 12) - 1},
	[DEV_MINOR] = {"devMinor", (1 << 20) - 1},
	[XATTRS] = {"xattrs", 0},
	[DIGEST] = {"digest", 0},
	[CHUNK_OFFSET] = {"chunkOffset", INT64_MAX},
	[CHUNK_SIZE] = {"chunkSize", INT64_MAX},
	[CHUNK_DIGEST] = {"chunkDigest", 0},
	[END_OFFSET] = {"endOffset", INT64_MAX},
	[ACCESS_TIME] = {"accesstime", 0},
	[CHANGE_TIME] = {"changetime", 0},
};

struct raw {
	struct text texts[KEY_COUNT];
	uint64_t numbers[KEY_COUNT];
	uint32_t seen;
};

static bool read_member(struct reader *in, struct raw *raw, unsigned *hint)
{
	struct text name;
	unsigned i, key;

	if (!json_text(&in->json, &name) || !json_take(&in->json, ':'))
		return false;
	for (i = 0; i < KEY_COUNT; i++) { /* producers keep to one order */
		key = (*hint + i) % KEY_COUNT;
		if (text_is(name, KEYS[key].name))
			break;
	}
	if (i == KEY_COUNT || raw->seen & 1u << key)
		return false;
	raw->seen |= 1u << key;
	*hint = key + 1;
	if (key == XATTRS)
		return json_texts(&in->json, &raw->texts[key]);
	if (KEYS[key].most)
		return json_number(&in->json, KEYS[key].most,
				   &raw->numbers[key]);
	return json_text(&in->json, &raw->texts[key]);
}

static bool read_object(struct reader *in, struct raw *raw)
{
	unsigned hint = 0;

	memset(raw, 0, sizeof(*raw));
	if (!json_take(&in->json, '{'))
		return false;
	do {
		if (!read_member(in, raw, &hint))
			return false;
	} while (json_take(&in->json, ','));
	return json_take(&in->json, '}') && raw->seen & 1u << NAME &&
	       raw->seen & 1u << TYPE;
}

/* Add the chunk that 'raw' says, of bytes 'position' to 'position' + 'size'. */
static bool add_chunk(struct reader *in, const struct raw *raw,
		      uint64_t position, uint64_t size, const uint8_t *digest)
{
	const struct lfs_toc_limits *limits = in->limits;
	uint64_t offset = raw->numbers[OFFSET], room, end;
	uint64_t inner = raw->numbers[INNER_OFFSET];
	struct lfs_toc *toc = in->toc;
	struct toc_chunk *chunk;

	if (raw->numbers[CHUNK_OFFSET] != position ||
	    offset >= limits->blob_size || size > limits->chunk_size ||
	    __builtin_add_overflow(inner, size, &end) ||
	    end > limits->stream_size)
		return false;
	if (!__builtin_mul_overflow(limits->blob_size - offset, limits->ratio,
				    &room) &&
	    end > room)
		return false;
	if (!toc_grow((void **)&toc->chunks, toc->chunk_count, &toc->chunk_room,
		      sizeof(*toc->chunks)))
		return false;
	chunk = &toc->chunks[toc->chunk_count];
	if (digest)
		memcpy(chunk->digest, digest, DIGEST_SIZE);
	else if (!toc_read_digest(raw->texts[CHUNK_DIGEST], chunk->digest))
		return false;
	chunk->offset = position;
	chunk->size = size;
	chunk->blob_offset = offset;
	chunk->inner_offset = inner;
	toc->chunk_count++;
	return true;
}

/* Read the regular file 'raw' and its first chunk. */
static bool read_payload(struct reader *in, const struct raw *raw,
			 struct toc_entry *entry)
{
	uint64_t size = raw->numbers[SIZE], part_size;
	uint64_t most = in->limits->device_size;
	struct lfs_toc *toc = in->toc;
	uint8_t stated[DIGEST_SIZE];

	entry->size = size;
	if (raw->texts[DIGEST].size) {
		if (!toc_read_digest(raw->texts[DIGEST], entry->digest))
			return false;
		entry->has_digest = true;
	}
	if (!size)
		return true;
	entry->device_offset = toc->device_size;
	if (size > most || size > MAX_DEVICE_SIZE)
		return false;
	toc->device_size += (size + BLOCK_SIZE - 1) / BLOCK_SIZE * BLOCK_SIZE;
	if (toc->device_size > most || toc->device_size > MAX_DEVICE_SIZE)
		return false;
	entry->first_chunk = toc->chunk_count;
	part_size = raw->numbers[CHUNK_SIZE];
	if (part_size == 0 || part_size >= size) {
		/* all of it in one chunk, whatever chunkSize says */
		if (raw->texts[CHUNK_DIGEST].size && entry->has_digest &&
		    (!toc_read_digest(raw->texts[CHUNK_DIGEST], stated) ||
		     memcmp(stated, entry->digest, DIGEST_SIZE) != 0))
			return false;
		if (!add_chunk(in, raw, 0, size,
			       entry->has_digest ? entry->digest : NULL))
			return false;
	} else if (!add_chunk(in, raw, 0, part_size, NULL)) {
		return false;
	}
	entry->chunk_count = 1;
	return true;
}

/* Add the chunk that 'raw' says to the file before it. */
static bool read_part(struct reader *in, const struct raw *raw)
{
	struct lfs_toc *toc = in->toc;
	struct toc_entry *entry;
	struct toc_chunk *last;
	uint64_t position, size;

	if (!toc->count)
		return false;
	entry = &toc->entries[toc->count - 1];
	if (entry->kind != KIND_REGULAR || !entry->size)
		return false;
	last = &toc->chunks[toc->chunk_count - 1];
	position = last->offset + last->size;
	if (position >= entry->size)
		return false; /* also after a file that was taken for one chunk
			       */
	size = raw->numbers[CHUNK_SIZE];
	if (!size)
		size = entry->size - position;
	if (size > entry->size - position ||
	    !add_chunk(in, raw, position, size, NULL))
		return false;
	entry->chunk_count++;
	return true;
}

/* Say whether the last file has all of its chunks. */
static bool is_complete(const struct lfs_toc *toc)
{
	const struct toc_entry *entry;
	const struct toc_chunk *last;

	if (!toc->count)
		return true;
	entry = &toc->entries[toc->count - 1];
	if (!entry->chunk_count)
		return true;
	last = &toc->chunks[toc->chunk_count - 1];
	return last->offset + last->size == entry->size;
}

static bool read_link(struct reader *in, const struct raw *raw,
		      struct toc_entry *entry)
{
	struct text link = raw->texts[LINK_NAME];

	if (entry->kind == KIND_HARDLINK)
		return toc_read_path(&in->json, in->limits, link, &entry->link,
				     &entry->link_size);
	entry->link = link.bytes;
	entry->link_size = link.size;
	return link.size > 0 && link.size <= in->limits->link_size;
}

static bool read_entry(struct reader *in)
{
	struct lfs_toc *toc = in->toc;
	struct toc_entry *entry;
	struct raw raw;

	if (!read_object(in, &raw))
		return false;
	if (text_is(raw.texts[TYPE], "chunk"))
		return read_part(in, &raw);
	if (!is_complete(toc) || !toc_grow((void **)&toc->entries, toc->count,
					   &toc->room, sizeof(*toc->entries)))
		return false;
	entry = &toc->entries[toc->count];
	memset(entry, 0, sizeof(*entry));
	entry->kind = toc_kind(raw.texts[TYPE]);
	if (!entry->kind ||
	    !toc_read_path(&in->json, in->limits, raw.texts[NAME], &entry->path,
			   &entry->path_size))
		return false;
	if (!entry->path_size && entry->kind != KIND_DIRECTORY)
		return false;
	if (entry->kind == KIND_REGULAR) {
		if (!read_payload(in, &raw, entry))
			return false;
	} else if (entry->kind == KIND_SYMLINK ||
		   entry->kind == KIND_HARDLINK) {
		if (!read_link(in, &raw, entry))
			return false;
	} else if (entry->kind == KIND_CHAR || entry->kind == KIND_BLOCK) {
		entry->major = (uint32_t)raw.numbers[DEV_MAJOR];
		entry->minor = (uint32_t)raw.numbers[DEV_MINOR];
	}
	if (raw.texts[MODTIME].size) {
		if (!toc_read_time(raw.texts[MODTIME], &in->time))
			return false;
		entry->seconds = in->time.seconds;
		entry->nanoseconds = in->time.nanoseconds;
	}
	entry->mode = raw.numbers[MODE] & 07777;
	entry->uid = (uint32_t)raw.numbers[UID];
	entry->gid = (uint32_t)raw.numbers[GID];
	if (raw.texts[XATTRS].size) {
		entry->xattrs = raw.texts[XATTRS].bytes;
		entry->xattrs_size = raw.texts[XATTRS].size;
	}
	toc->count++;
	return true;
}

static bool read_entries(struct reader *in)
{
	uint64_t total = 0;

	if (!json_take(&in->json, '['))
		return false;
	if (json_take(&in->json, ']'))
		return true;
	do {
		if (++total > in->limits->entries || !read_entry(in))
			return false;
	} while (json_take(&in->json, ','));
	return json_take(&in->json, ']') && is_complete(in->toc);
}

static bool read_document(struct reader *in)
{
	bool has_version = false, has_entries = false, has_split = false;
	struct text name, split;
	uint64_t version;

	if (!json_take(&in->json, '{'))
		return false;
	do {
		if (!json_text(&in->json, &name) || !json_take(&in->json, ':'))
			return false;
		if (text_is(name, "version") && !has_version) {
			if (!json_number(&in->json, 1, &version) ||
			    version != 1)
				return false;
			has_version = true;
		} else if (text_is(name, "entries") && !has_entries) {
			if (!read_entries(in))
				return false;
			has_entries = true;
		} else if (text_is(name, "tarSplitDigest") && !has_split) {
			if (!json_text(&in->json, &split))
				return false;
			in->toc->tar_split = split.bytes;
			in->toc->tar_split_size = split.size;
			has_split = true;
		} else {
			return false;
		}
	} while (json_take(&in->json, ','));
	if (!json_take(&in->json, '}') || !has_version || !has_entries)
		return false;
	json_skip_blanks(&in->json);
	return in->json.at == in->json.end;
}

enum lfs_result lfs_toc_scan(struct lfs_toc **out, const uint8_t *json,
			     size_t size, const struct lfs_toc_limits *limits)
{
	enum lfs_result result = LFS_UNUSUAL;
	struct lfs_toc *toc;
	struct reader in;

	if (!size || size > INT32_MAX || limits->block_size != BLOCK_SIZE)
		return LFS_UNUSUAL;
	toc = calloc(1, sizeof(*toc));
	if (!toc)
		return LFS_UNUSUAL;
	memset(&in, 0, sizeof(in));
	toc->codec = limits->codec;
	/* Escapes and paths: each at most as long as the text it is from. */
	toc->arena = malloc(2 * size);
	if (toc->arena) {
		in.json.at = json;
		in.json.end = json + size;
		in.json.arena = toc->arena;
		in.toc = toc;
		in.limits = limits;
		if (read_document(&in))
			result = toc_plant(toc, limits);
	}
	if (result != LFS_OK) {
		lfs_toc_free(toc);
		return result;
	}
	*out = toc;
	return LFS_OK;
}
