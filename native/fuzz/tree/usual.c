/* SPDX-License-Identifier: Apache-2.0 */
/* Which layers the core takes, and which it leaves to its twin. */
#include "usual.h"

#include <string.h>

bool made_begins(const char *name, const char *prefix)
{
	return strncmp(name, prefix, strlen(prefix)) == 0;
}

const char *made_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

bool made_is_below(const char *path, size_t size, const char *above,
		     size_t above_size)
{
	return size > above_size && !memcmp(path, above, above_size) &&
	       (!above_size || path[above_size] == '/');
}

static const struct made_item *find_item(const struct made_layer *layer,
					 const char *path, size_t size)
{
	size_t i;

	for (i = 0; i < layer->count; i++)
		if (layer->items[i].path_size == size &&
		    !memcmp(layer->items[i].path, path, size))
			return &layer->items[i];
	return NULL;
}

const struct made_item *made_target(const struct made_layer *layer,
				    const struct made_item *item)
{
	unsigned steps;

	for (steps = 0; item && item->kind == 8; steps++) {
		item = find_item(layer, item->link, item->link_size);
		if (steps > 8)
			return NULL;
	}
	if (!item || item->kind == 2 || made_begins(made_name(item->path), ".wh."))
		return NULL;
	return item;
}

bool made_is_usual_item(const struct made_layer *layer, size_t number)
{
	const struct made_item *item = &layer->items[number], *other;
	const char *name = made_name(item->path);
	size_t i, start = 0;

	if (item->is_odd || (!item->path_size && item->kind != 2))
		return false;
	if (!strcmp(name, ".wh.") || !strcmp(name, ".wh..") ||
	    !strcmp(name, ".wh..."))
		return false;
	for (i = 0; i < item->path_size; i++) {
		if (item->path[i] != '/')
			continue;
		if (made_begins(item->path + start, ".wh."))
			return false;
		start = i + 1;
	}
	for (i = 0; i < layer->count; i++) {
		other = &layer->items[i];
		if (i < number && other->path_size == item->path_size &&
		    !memcmp(other->path, item->path, item->path_size))
			return false;
		if (other->kind != 2 &&
		    made_is_below(item->path, item->path_size, other->path,
			     other->path_size))
			return false;
	}
	return item->kind != 8 || made_target(layer, item);
}

bool made_is_usual(const struct made_layer *layer)
{
	size_t i;

	for (i = 0; i < layer->count; i++)
		if (!made_is_usual_item(layer, i))
			return false;
	return true;
}
