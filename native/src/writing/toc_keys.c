/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether a table of contents has any object with two equal keys, or with a
 * known one in another case.  lazyfs/formats/tocs/toc_keys.py is the rule and has
 * the words: this says "no" where it is sure, and leaves the rest to it.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "lazyfs_toc.h"
#include "toc_json.h"

#define MAX_NAMES 32
#define MAX_DEPTH 8
#define MAX_UNKNOWN 8

struct level {
	bool is_object;
	uint32_t seen;
	unsigned hint, unknown_count;
	struct text unknown[MAX_UNKNOWN];
};

struct keys {
	struct json json;
	struct text names[MAX_NAMES];
	unsigned count, depth;
	struct level levels[MAX_DEPTH];
};

static uint8_t folded(uint8_t c)
{
	return c >= 'A' && c <= 'Z' ? (uint8_t)(c | 0x20) : c;
}

static bool is_same_folded(struct text a, struct text b)
{
	uint32_t i;

	if (a.size != b.size)
		return false;
	for (i = 0; i < a.size; i++)
		if (folded(a.bytes[i]) != folded(b.bytes[i]))
			return false;
	return true;
}

/* Note a key that is not known; false if there is doubt. */
static bool note_unknown(const struct keys *in, struct level *level,
			 struct text key)
{
	unsigned i;

	for (i = 0; i < key.size; i++)
		if (key.bytes[i] >= 0x80)
			return false; /* Python folds all of Unicode */
	for (i = 0; i < in->count; i++)
		if (is_same_folded(key, in->names[i]))
			return false;
	for (i = 0; i < level->unknown_count; i++)
		if (text_same(key, level->unknown[i]))
			return false;
	if (level->unknown_count == MAX_UNKNOWN)
		return false;
	level->unknown[level->unknown_count++] = key;
	return true;
}

static bool note_key(const struct keys *in, struct level *level,
		     struct text key)
{
	unsigned i, name;

	for (i = 0; i < in->count; i++) { /* producers keep to one order */
		name = (level->hint + i) % in->count;
		if (!text_same(key, in->names[name]))
			continue;
		if (level->seen & 1u << name)
			return false;
		level->seen |= 1u << name;
		level->hint = name + 1;
		return true;
	}
	return note_unknown(in, level, key);
}

static bool skip_word(struct json *in)
{
	const uint8_t *first = in->at;
	uint8_t c;

	for (; in->at < in->end; in->at++) {
		c = *in->at;
		if (!((c | 0x20) >= 'a' && (c | 0x20) <= 'z') &&
		    !(c >= '0' && c <= '9') && c != '-' && c != '+' && c != '.')
			break;
	}
	return in->at > first;
}

static bool open_level(struct keys *in, bool is_object)
{
	struct level *level;

	if (in->depth == MAX_DEPTH)
		return false;
	level = &in->levels[in->depth++];
	level->is_object = is_object;
	level->seen = 0;
	level->hint = 0;
	level->unknown_count = 0;
	return true;
}

/* Read the key before a value of the innermost object. */
static bool read_key(struct keys *in)
{
	struct text key;

	return json_text(&in->json, &key) && json_take(&in->json, ':') &&
	       note_key(in, &in->levels[in->depth - 1], key);
}

/* Step over a text, a number or a word; its bytes are of no interest. */
static bool skip_scalar(struct keys *in)
{
	size_t used = in->json.arena_used;
	struct text ignored;

	if (in->json.at < in->json.end && *in->json.at == '"') {
		if (!json_text(&in->json, &ignored))
			return false;
		in->json.arena_used = used; /* keys stay, values need not */
		return true;
	}
	return skip_word(&in->json);
}

/* Read a value up to where it ends, or to the first value within it. */
static bool begin_value(struct keys *in, bool *has_ended)
{
	bool is_object;

	json_skip_blanks(&in->json);
	if (in->json.at == in->json.end)
		return false;
	is_object = *in->json.at == '{';
	*has_ended = true;
	if (!is_object && *in->json.at != '[')
		return skip_scalar(in);
	in->json.at++;
	if (json_take(&in->json, is_object ? '}' : ']'))
		return true;
	*has_ended = false;
	return open_level(in, is_object) && (!is_object || read_key(in));
}

static bool read_all(struct keys *in)
{
	struct level *level;
	bool has_ended;

	for (;;) {
		if (!begin_value(in, &has_ended))
			return false;
		while (has_ended) {
			if (!in->depth) {
				json_skip_blanks(&in->json);
				return in->json.at == in->json.end;
			}
			level = &in->levels[in->depth - 1];
			if (json_take(&in->json, ',')) {
				if (level->is_object && !read_key(in))
					return false;
				break;
			}
			if (!json_take(&in->json, level->is_object ? '}' : ']'))
				return false;
			in->depth--;
		}
	}
}

static bool read_names(struct keys *in, const uint8_t *names, size_t size)
{
	const uint8_t *at = names, *end = names + size, *stop;

	for (; at < end; at = stop + 1) {
		stop = memchr(at, 0, (size_t)(end - at));
		if (!stop)
			stop = end;
		if (in->count == MAX_NAMES)
			return false;
		in->names[in->count].bytes = at;
		in->names[in->count++].size = (uint32_t)(stop - at);
	}
	return in->count > 0;
}

bool lfs_toc_has_plain_keys(const uint8_t *json, size_t size,
			    const uint8_t *names, size_t names_size)
{
	struct keys *in;
	bool result;

	if (!size || size > INT32_MAX)
		return false;
	in = calloc(1, sizeof(*in));
	if (!in)
		return false;
	in->json.at = json;
	in->json.end = json + size;
	in->json.arena = malloc(size); /* of it, what escapes take is used */
	result = in->json.arena && read_names(in, names, names_size) &&
		 read_all(in);
	free(in->json.arena);
	free(in);
	return result;
}
