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

#define MAX_DEPTH 1024
#define SECONDS_A_DAY 86400
#define EPOCH_DAY 719162 /* days from 0001-01-01 to 1970-01-01 */

struct text {
	const uint8_t *bytes;
	uint32_t size;
};

struct reader {
	const uint8_t *at, *end;
	struct lfs_toc *toc;
	const struct lfs_toc_limits *limits;
	struct text last_time;
	int64_t seconds;
	uint32_t nanoseconds;
};

enum key {
	NAME, TYPE, SIZE, MODTIME, LINK_NAME, MODE, UID, GID, USER_NAME,
	GROUP_NAME, OFFSET, INNER_OFFSET, DEV_MAJOR, DEV_MINOR, XATTRS, DIGEST,
	CHUNK_OFFSET, CHUNK_SIZE, CHUNK_DIGEST, END_OFFSET, ACCESS_TIME,
	CHANGE_TIME, KEY_COUNT,
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

static bool is_text(struct text text, const char *other)
{
	return text.size == strlen(other) &&
	       memcmp(text.bytes, other, text.size) == 0;
}

static bool same(struct text a, struct text b)
{
	return a.size == b.size && memcmp(a.bytes, b.bytes, a.size) == 0;
}

/* ---- JSON ---------------------------------------------------------------- */

static void skip_blanks(struct reader *in)
{
	while (in->at < in->end && (*in->at == ' ' || *in->at == '\t' ||
				    *in->at == '\n' || *in->at == '\r'))
		in->at++;
}

/* Step over the one byte 'wanted' and the blanks before it. */
static bool take(struct reader *in, uint8_t wanted)
{
	skip_blanks(in);
	if (in->at == in->end || *in->at != wanted)
		return false;
	in->at++;
	return true;
}

/* Return the size of the well-formed UTF-8 sequence at 'at', or 0. */
static size_t sequence_size(const uint8_t *at, const uint8_t *end)
{
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
	size_t i, size = *at >= 0xF0 ? 4 : *at >= 0xE0 ? 3 : 2;
	uint32_t code;

	if (*at < 0xC2 || *at > 0xF4 || (size_t)(end - at) < size)
		return 0;
	code = *at & (0x7Fu >> size);
	for (i = 1; i < size; i++) {
		if ((at[i] & 0xC0) != 0x80)
			return 0;
		code = code << 6 | (at[i] & 0x3F);
	}
	if (code < least[size] || code > 0x10FFFF ||
	    (code >= 0xD800 && code < 0xE000))
		return 0;
	return size;
}

/* Read the four digits of an escape. */
static bool read_digits_of_code(struct reader *in, uint32_t *code)
{
	unsigned i;
	uint8_t c;

	if (in->end - in->at < 4)
		return false;
	for (*code = 0, i = 0; i < 4; i++) {
		c = *in->at++;
		if (c >= '0' && c <= '9')
			*code = *code << 4 | (uint32_t)(c - '0');
		else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
			*code = *code << 4 | (uint32_t)((c | 0x20) - 'a' + 10);
		else
			return false;
	}
	return true;
}

/* Read the digits of an escape, or of two that are one code; no NUL. */
static bool read_code(struct reader *in, uint32_t *code)
{
	uint32_t low;

	if (!read_digits_of_code(in, code) || !*code)
		return false;
	if (*code < 0xD800 || *code >= 0xE000)
		return true;
	if (*code >= 0xDC00 || in->end - in->at < 2 || in->at[0] != '\\' ||
	    in->at[1] != 'u')
		return false;
	in->at += 2;
	if (!read_digits_of_code(in, &low) || low < 0xDC00 || low >= 0xE000)
		return false;
	*code = 0x10000 + ((*code - 0xD800) << 10 | (low - 0xDC00));
	return true;
}

/* Write what the escape after a backslash means; at most as long as it. */
static bool unescape(struct reader *in, uint8_t **out)
{
	static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
	const char *found;
	uint32_t code;
	uint8_t c;

	if (in->at == in->end || !*in->at)
		return false;
	c = *in->at++;
	if (c != 'u') {
		found = strchr(from, c);
		if (!found)
			return false;
		*(*out)++ = (uint8_t)to[found - from];
		return true;
	}
	if (!read_code(in, &code))
		return false;
	if (code < 0x80) {
		*(*out)++ = (uint8_t)code;
		return true;
	}
	if (code >= 0x10000) {
		*(*out)++ = (uint8_t)(0xF0 | code >> 18);
		*(*out)++ = (uint8_t)(0x80 | (code >> 12 & 0x3F));
		*(*out)++ = (uint8_t)(0x80 | (code >> 6 & 0x3F));
	} else if (code >= 0x800) {
		*(*out)++ = (uint8_t)(0xE0 | code >> 12);
		*(*out)++ = (uint8_t)(0x80 | (code >> 6 & 0x3F));
	} else {
		*(*out)++ = (uint8_t)(0xC0 | code >> 6);
	}
	*(*out)++ = (uint8_t)(0x80 | (code & 0x3F));
	return true;
}

/* Return the first byte from 'at' on that is not plain ASCII within a text. */
static const uint8_t *skip_plain(const uint8_t *at, const uint8_t *end)
{
	static const uint64_t ones = 0x0101010101010101, tops = ones << 7;
	uint64_t word, odd;

	while (end - at >= 8) {
		memcpy(&word, at, 8);
		odd = word | (word - 0x20 * ones); /* 0x80 and up, below 0x20 */
		odd |= (word ^ '"' * ones) - ones;
		odd |= (word ^ '\\' * ones) - ones;
		if (odd & tops)
			break;
		at += 8;
	}
	while (at < end && *at >= 0x20 && *at < 0x80 && *at != '"' &&
	       *at != '\\')
		at++;
	return at;
}

/* Read a text; one without escapes stays where it is. */
static bool read_text(struct reader *in, struct text *text)
{
	uint8_t *start = in->toc->arena + in->toc->arena_used, *out = NULL;
	const uint8_t *first;
	size_t size;
	uint8_t c;

	if (!take(in, '"'))
		return false;
	first = in->at;
	while (in->at < in->end) {
		if (!out)
			in->at = skip_plain(in->at, in->end);
		if (in->at == in->end)
			return false;
		c = *in->at;
		if (c == '"') {
			text->bytes = out ? start : first;
			text->size = (uint32_t)(out ? out - start
						    : in->at - first);
			if (out)
				in->toc->arena_used += text->size;
			in->at++;
			return true;
		}
		if (c < 0x20)
			return false;
		if (c == '\\') {
			if (!out) {
				size = (size_t)(in->at - first);
				memcpy(start, first, size);
				out = start + size;
			}
			in->at++;
			if (!unescape(in, &out))
				return false;
			continue;
		}
		size = 1;
		if (c >= 0x80 && !(size = sequence_size(in->at, in->end)))
			return false;
		if (out) {
			memcpy(out, in->at, size);
			out += size;
		}
		in->at += size;
	}
	return false;
}

/* Read a whole number that is not negative, has no needless zero, and no
 * fraction or exponent after it. */
static bool read_number(struct reader *in, uint64_t most, uint64_t *number)
{
	const uint8_t *first;
	uint64_t value = 0;

	skip_blanks(in);
	first = in->at;
	while (in->at < in->end && *in->at >= '0' && *in->at <= '9') {
		if (in->at - first == 19)
			return false;
		value = value * 10 + (uint64_t)(*in->at++ - '0');
	}
	if (in->at == first || (*first == '0' && in->at - first > 1))
		return false;
	if (in->at < in->end &&
	    (*in->at == '.' || (*in->at | 0x20) == 'e'))
		return false;
	*number = value;
	return value <= most;
}

/* Step over an object of texts, and return it; what they are is Python's. */
static bool read_xattrs(struct reader *in, struct text *text)
{
	size_t used = in->toc->arena_used;
	struct text ignored;

	if (!take(in, '{'))
		return false;
	text->bytes = in->at - 1;
	text->size = 0;
	if (take(in, '}'))
		return true;
	do {
		if (!read_text(in, &ignored) || !take(in, ':') ||
		    !read_text(in, &ignored))
			return false;
		in->toc->arena_used = used;
	} while (take(in, ','));
	if (!take(in, '}'))
		return false;
	text->size = (uint32_t)(in->at - text->bytes);
	return true;
}

static bool read_member(struct reader *in, struct raw *raw, unsigned *hint)
{
	struct text name;
	unsigned i, key;

	if (!read_text(in, &name) || !take(in, ':'))
		return false;
	for (i = 0; i < KEY_COUNT; i++) { /* producers keep to one order */
		key = (*hint + i) % KEY_COUNT;
		if (is_text(name, KEYS[key].name))
			break;
	}
	if (i == KEY_COUNT || raw->seen & 1u << key)
		return false;
	raw->seen |= 1u << key;
	*hint = key + 1;
	if (key == XATTRS)
		return read_xattrs(in, &raw->texts[key]);
	if (KEYS[key].most)
		return read_number(in, KEYS[key].most, &raw->numbers[key]);
	return read_text(in, &raw->texts[key]);
}

static bool read_object(struct reader *in, struct raw *raw)
{
	unsigned hint = 0;

	memset(raw, 0, sizeof(*raw));
	if (!take(in, '{'))
		return false;
	do {
		if (!read_member(in, raw, &hint))
			return false;
	} while (take(in, ','));
	return take(in, '}') && raw->seen & 1u << NAME &&
	       raw->seen & 1u << TYPE;
}

/* ---- Values -------------------------------------------------------------- */

static bool read_digest(struct text text, uint8_t digest[DIGEST_SIZE])
{
	static const char prefix[] = "sha256:";
	static const uint8_t values[256] = {
		['0'] = 16, ['1'] = 17, ['2'] = 18, ['3'] = 19,
		['4'] = 20, ['5'] = 21, ['6'] = 22, ['7'] = 23,
		['8'] = 24, ['9'] = 25, ['a'] = 26, ['b'] = 27,
		['c'] = 28, ['d'] = 29, ['e'] = 30, ['f'] = 31,
	}; /* and 16, to tell them from what is no digit */
	unsigned i, high, low, all = 16;
	const uint8_t *at;

	if (text.size != sizeof(prefix) - 1 + 2 * DIGEST_SIZE ||
	    memcmp(text.bytes, prefix, sizeof(prefix) - 1) != 0)
		return false;
	at = text.bytes + sizeof(prefix) - 1;
	for (i = 0; i < DIGEST_SIZE; i++, at += 2) {
		high = values[at[0]];
		low = values[at[1]];
		all &= high & low;
		digest[i] = (uint8_t)((high << 4 | (low & 15)) & 0xFF);
	}
	return all & 16;
}

/* Read 'count' digits. */
static bool read_digits(const uint8_t *at, unsigned count, uint32_t *number)
{
	for (*number = 0; count; count--, at++) {
		if (*at < '0' || *at > '9')
			return false;
		*number = *number * 10 + (uint32_t)(*at - '0');
	}
	return true;
}

/* Read YYYY-MM-DDTHH:MM:SS[.fraction]Z. */
static bool read_time(struct reader *in, struct text text)
{
	static const uint8_t days_in[] = {31, 28, 31, 30, 31, 30,
					  31, 31, 30, 31, 30, 31};
	static const char form[] = "    -  -  T  :  :  ";
	uint32_t year, month, day, hour, minute, second, before, i, days;
	const uint8_t *at = text.bytes;
	uint32_t place = 100000000;
	bool leap;

	if (same(text, in->last_time))
		return true;
	if (text.size < 20 || text.size > 50 || at[text.size - 1] != 'Z')
		return false;
	for (i = 0; i < sizeof(form) - 1; i++)
		if (form[i] != ' ' && at[i] != (uint8_t)form[i])
			return false;
	if (!read_digits(at, 4, &year) || !read_digits(at + 5, 2, &month) ||
	    !read_digits(at + 8, 2, &day) || !read_digits(at + 11, 2, &hour) ||
	    !read_digits(at + 14, 2, &minute) ||
	    !read_digits(at + 17, 2, &second))
		return false;
	leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
	if (year < 1 || month < 1 || month > 12 || day < 1 ||
	    day > days_in[month - 1] + (uint32_t)(month == 2 && leap) ||
	    hour > 23 || minute > 59 || second > 59)
		return false;
	in->nanoseconds = 0;
	if (text.size > 20) {
		if (at[19] != '.' || text.size == 21)
			return false;
		for (i = 20; i < text.size - 1; i++, place /= 10) {
			if (at[i] < '0' || at[i] > '9')
				return false;
			in->nanoseconds += (uint32_t)(at[i] - '0') * place;
		}
	}
	before = year - 1;
	days = before * 365 + before / 4 - before / 100 + before / 400;
	for (i = 1; i < month; i++)
		days += days_in[i - 1];
	days += (uint32_t)(month > 2 && leap) + day - 1;
	in->seconds = ((int64_t)days - EPOCH_DAY) * SECONDS_A_DAY +
		      (int64_t)(hour * 3600 + minute * 60 + second);
	in->last_time = text;
	return true;
}

/* Write the normalised form of a path, with NULs for slashes, to the arena. */
static bool read_path(struct reader *in, struct text text, const uint8_t **path,
		      uint32_t *path_size)
{
	uint8_t *start = in->toc->arena + in->toc->arena_used, *out = start;
	const uint8_t *at = text.bytes, *end = at + text.size, *slash;
	uint32_t depth = 0;
	size_t size;

	for (; at < end; at = slash + 1) {
		slash = memchr(at, '/', (size_t)(end - at));
		if (!slash)
			slash = end;
		size = (size_t)(slash - at);
		if (size == 0 || (size == 1 && *at == '.'))
			continue;
		if (size == 2 && at[0] == '.' && at[1] == '.')
			return false; /* rare, and not worth a way back */
		if (size > in->limits->component_size || ++depth > MAX_DEPTH ||
		    depth > in->limits->depth)
			return false;
		if (out != start)
			*out++ = 0;
		memcpy(out, at, size);
		out += size;
	}
	*path = start;
	*path_size = (uint32_t)(out - start);
	in->toc->arena_used += *path_size;
	return *path_size <= in->limits->path_size;
}

static uint8_t kind_of(struct text type)
{
	static const struct {
		const char *name;
		uint8_t kind;
	} kinds[] = {
		{"reg", KIND_REGULAR},	     {"dir", KIND_DIRECTORY},
		{"symlink", KIND_SYMLINK},   {"hardlink", KIND_HARDLINK},
		{"char", KIND_CHAR},	     {"block", KIND_BLOCK},
		{"fifo", KIND_FIFO},
	};
	size_t i;

	for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (is_text(type, kinds[i].name))
			return kinds[i].kind;
	return 0;
}

/* ---- Entries ------------------------------------------------------------- */

bool toc_grow(void **array, uint32_t count, uint32_t *room, size_t size)
{
	uint32_t wanted;
	void *bigger;

	if (count < *room)
		return true;
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
	else if (!read_digest(raw->texts[CHUNK_DIGEST], chunk->digest))
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
		if (!read_digest(raw->texts[DIGEST], entry->digest))
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
		    (!read_digest(raw->texts[CHUNK_DIGEST], stated) ||
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
		return false; /* also after a file that was taken for one chunk */
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
		return read_path(in, link, &entry->link, &entry->link_size);
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
	if (is_text(raw.texts[TYPE], "chunk"))
		return read_part(in, &raw);
	if (!is_complete(toc) ||
	    !toc_grow((void **)&toc->entries, toc->count, &toc->room,
		      sizeof(*toc->entries)))
		return false;
	entry = &toc->entries[toc->count];
	memset(entry, 0, sizeof(*entry));
	entry->kind = kind_of(raw.texts[TYPE]);
	if (!entry->kind || !read_path(in, raw.texts[NAME], &entry->path,
				       &entry->path_size))
		return false;
	if (!entry->path_size && entry->kind != KIND_DIRECTORY)
		return false;
	if (entry->kind == KIND_REGULAR) {
		if (!read_payload(in, &raw, entry))
			return false;
	} else if (entry->kind == KIND_SYMLINK || entry->kind == KIND_HARDLINK) {
		if (!read_link(in, &raw, entry))
			return false;
	} else if (entry->kind == KIND_CHAR || entry->kind == KIND_BLOCK) {
		entry->major = (uint32_t)raw.numbers[DEV_MAJOR];
		entry->minor = (uint32_t)raw.numbers[DEV_MINOR];
	}
	if (raw.texts[MODTIME].size) {
		if (!read_time(in, raw.texts[MODTIME]))
			return false;
		entry->seconds = in->seconds;
		entry->nanoseconds = in->nanoseconds;
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

	if (!take(in, '['))
		return false;
	if (take(in, ']'))
		return true;
	do {
		if (++total > in->limits->entries || !read_entry(in))
			return false;
	} while (take(in, ','));
	return take(in, ']') && is_complete(in->toc);
}

static bool read_document(struct reader *in)
{
	bool has_version = false, has_entries = false, has_split = false;
	struct text name, split;
	uint64_t version;

	if (!take(in, '{'))
		return false;
	do {
		if (!read_text(in, &name) || !take(in, ':'))
			return false;
		if (is_text(name, "version") && !has_version) {
			if (!read_number(in, 1, &version) || version != 1)
				return false;
			has_version = true;
		} else if (is_text(name, "entries") && !has_entries) {
			if (!read_entries(in))
				return false;
			has_entries = true;
		} else if (is_text(name, "tarSplitDigest") && !has_split) {
			if (!read_text(in, &split))
				return false;
			in->toc->tar_split = split.bytes;
			in->toc->tar_split_size = split.size;
			has_split = true;
		} else {
			return false;
		}
	} while (take(in, ','));
	if (!take(in, '}') || !has_version || !has_entries)
		return false;
	skip_blanks(in);
	return in->at == in->end;
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
		in.at = json;
		in.end = json + size;
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
