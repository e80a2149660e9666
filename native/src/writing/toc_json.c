/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON of which usual tables of contents are made: texts, whole numbers,
 * and what holds them.  Whoever reads knows what comes next; there is no tree.
 */
#define _GNU_SOURCE
#include "toc_json.h"

#include <string.h>

bool text_is(struct text text, const char *other)
{
	return text.size == strlen(other) &&
	       memcmp(text.bytes, other, text.size) == 0;
}

bool text_same(struct text a, struct text b)
{
	return a.size == b.size && memcmp(a.bytes, b.bytes, a.size) == 0;
}

void json_skip_blanks(struct json *in)
{
	while (in->at < in->end && (*in->at == ' ' || *in->at == '\t' ||
				    *in->at == '\n' || *in->at == '\r'))
		in->at++;
}

/* Step over the one byte 'wanted' and the blanks before it. */
bool json_take(struct json *in, uint8_t wanted)
{
	json_skip_blanks(in);
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
static bool read_digits_of_code(struct json *in, uint32_t *code)
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
static bool read_code(struct json *in, uint32_t *code)
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
static bool unescape(struct json *in, uint8_t **out)
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
bool json_text(struct json *in, struct text *text)
{
	uint8_t *start = in->arena + in->arena_used, *out = NULL;
	const uint8_t *first;
	size_t size;
	uint8_t c;

	if (!json_take(in, '"'))
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
			text->size =
				(uint32_t)(out ? out - start : in->at - first);
			if (out)
				in->arena_used += text->size;
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
bool json_number(struct json *in, uint64_t most, uint64_t *number)
{
	const uint8_t *first;
	uint64_t value = 0;

	json_skip_blanks(in);
	first = in->at;
	while (in->at < in->end && *in->at >= '0' && *in->at <= '9') {
		if (in->at - first == 19)
			return false;
		value = value * 10 + (uint64_t)(*in->at++ - '0');
	}
	if (in->at == first || (*first == '0' && in->at - first > 1))
		return false;
	if (in->at < in->end && (*in->at == '.' || (*in->at | 0x20) == 'e'))
		return false;
	*number = value;
	return value <= most;
}

/* Step over an object of texts, and return it; what they are is Python's. */
bool json_texts(struct json *in, struct text *text)
{
	size_t used = in->arena_used;
	struct text ignored;

	if (!json_take(in, '{'))
		return false;
	text->bytes = in->at - 1;
	text->size = 0;
	if (json_take(in, '}'))
		return true;
	do {
		if (!json_text(in, &ignored) || !json_take(in, ':') ||
		    !json_text(in, &ignored))
			return false;
		in->arena_used = used;
	} while (json_take(in, ','));
	if (!json_take(in, '}'))
		return false;
	text->size = (uint32_t)(in->at - text->bytes);
	return true;
}
