/* SPDX-License-Identifier: Apache-2.0 */
/* Layers merged as a tree of plain paths. */
#include "model.h"

#include <stdlib.h>
#include <string.h>

#include "support.h"
#include "usual.h"

static struct node upper[MAX_NODES]; /* what one layer has of its own */
static size_t upper_count;

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
static void list_layer(const struct model *model, uint32_t number)
{
	static const char *const landmarks[] = {".prefetch.landmark",
						".no.prefetch.landmark"};
	const struct made_layer *layer = &model->made->layers[number];
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
static void white_out(struct model *model, const struct made_layer *layer)
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
			node = find_node(model->nodes, model->count, path,
					 head);
			if (node && node->is_directory)
				prune(model->nodes, &model->count, path, head,
				      false);
		} else if (!made_begins(name, ".wh..wh.")) {
			strcpy(path + head, name + 4);
			prune(model->nodes, &model->count, path, strlen(path),
			      true);
		}
	}
}

static int compare_depth(const void *a, const void *b)
{
	const struct node *x = a, *y = b;

	return (x->path_size > y->path_size) - (x->path_size < y->path_size);
}

void model_merge(struct model *model, const struct made_layers *made)
{
	struct node *old, *node;
	uint32_t number;
	size_t i;

	model->made = made;
	model->count = 0;
	add_node(model->nodes, &model->count, "", 0, 0, IMPLIED, true);
	for (number = 0; number < made->count; number++) {
		white_out(model, &made->layers[number]);
		list_layer(model, number);
		qsort(upper, upper_count, sizeof(*upper), compare_depth);
		for (i = 0; i < upper_count; i++) {
			node = &upper[i];
			old = find_node(model->nodes, model->count, node->path,
					node->path_size);
			if (old && old->is_directory && node->is_directory) {
				if (node->item != IMPLIED) {
					old->layer = node->layer;
					old->item = node->item;
				}
				continue;
			}
			if (old)
				prune(model->nodes, &model->count, node->path,
				      node->path_size, true);
			CHECK(model->count < MAX_NODES);
			model->nodes[model->count++] = *node;
		}
	}
}
