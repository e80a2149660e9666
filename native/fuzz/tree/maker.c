/* SPDX-License-Identifier: Apache-2.0 */
/* Room for texts, and JSON. */
#include "maker.h"

#include <stdarg.h>
#include <string.h>

#include "support.h"

char *keep(struct maker *in, const char *text, size_t size)
{
	char *out = in->room + in->used;

	if (ROOM - in->used < size + 1) {
		in->is_full = true;
		return in->room;
	}
	memcpy(out, text, size);
	out[size] = 0;
	in->used += size + 1;
	return out;
}

void put(struct maker *in, const char *format, ...)
{
	struct made_layer *layer = in->layer;
	size_t left = JSON_ROOM - layer->json_size;
	va_list arguments;
	int size;

	va_start(arguments, format);
	size = vsnprintf(layer->json + layer->json_size, left, format,
			 arguments);
	va_end(arguments);
	CHECK(size >= 0 && (size_t)size < left);
	layer->json_size += (size_t)size;
}

void put_byte(struct maker *in, uint8_t byte)
{
	struct made_layer *layer = in->layer;

	CHECK(layer->json_size < JSON_ROOM);
	layer->json[layer->json_size++] = (char)byte;
}

void put_text(struct maker *in, const char *text, size_t size, unsigned style)
{
	const uint8_t *at = (const uint8_t *)text, *end = at + size;

	put(in, "\"");
	for (; at < end; at++) {
		if (*at == '"' || *at == '\\')
			put(in, "\\%c", *at);
		else if (*at == '/' && style == 1)
			put(in, "\\/");
		else if (*at < 0x20 || (*at < 0x80 && style == 2))
			put(in, "\\u%04x", *at);
		else if (style == 3 && *at == 0xF0 && end - at >= 4) {
			put(in, "\\uD83D\\uDe00"); /* the only one in NAMES */
			at += 3;
		} else
			put_byte(in, *at);
	}
	put(in, "\"");
}
