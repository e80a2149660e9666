/* SPDX-License-Identifier: Apache-2.0 */
/* The arguments of a server, from Python's lists and buffers. */
#include "module_image.h"

#include <errno.h>

#include "lazyfs_index.h"
#include "lazyfs_result.h"
#include "lazyfs_server.h"
#include "lazyfs_tables.h"

static void corrupt(const char *what)
{
	PyErr_Format(PyExc_ValueError,
		     "%s: got bytes that contradict themselves", what);
}

/* Fill in 'layers' from a list of (table, states, content fd, digest, diffID).
 */
static int parse_layers(struct lent_image *lent, PyObject *list,
			struct lfs_layer *layers)
{
	struct lfs_layer *layer;
	struct lent_layer *own;
	PyObject *item;
	Py_ssize_t i, count = PyList_Size(list);

	for (i = 0; i < count; i++) {
		item = PyList_GetItem(list, i);
		own = &lent->layers[i];
		layer = &layers[i];
		if (!item ||
		    !PyArg_ParseTuple(item, "y*y*iss", &own->table,
				      &own->states, &layer->content_fd,
				      &layer->digest, &layer->diff_id))
			return -1;
		lent->layer_count++;
		layer->states = own->states.buf;
		layer->states_size = (size_t)own->states.len;
		if (lfs_table_open(&layer->table, own->table.buf,
				   (size_t)own->table.len) != LFS_OK) {
			corrupt("layer table");
			return -1;
		}
	}
	return 0;
}

/* Fill in 'attributes' from a list of (name, value or None). */
static int parse_attributes(PyObject *list, struct lfs_attribute *attributes)
{
	Py_ssize_t i, size, count = PyList_Size(list);
	const char *value;
	PyObject *item;

	for (i = 0; i < count; i++) {
		item = PyList_GetItem(list, i);
		if (!item || !PyArg_ParseTuple(item, "yz#", &attributes[i].name,
					       &value, &size))
			return -1;
		attributes[i].value = (const uint8_t *)value;
		attributes[i].value_size = value ? (size_t)size : 0;
	}
	return 0;
}

struct lfs_server *module_image_open(struct lent_image *lent, int fd,
				     PyObject *layer_list,
				     PyObject *attribute_list,
				     const struct lfs_options *options)
{
	Py_ssize_t layer_count = PyList_Size(layer_list);
	Py_ssize_t attribute_count = PyList_Size(attribute_list);
	struct lfs_attribute *attributes;
	struct lfs_image image;
	struct lfs_layer *layers;
	struct lfs_server *server = NULL;
	int error;

	layers = PyMem_Calloc((size_t)layer_count + 1, sizeof(*layers));
	attributes =
		PyMem_Calloc((size_t)attribute_count + 1, sizeof(*attributes));
	lent->layers =
		PyMem_Calloc((size_t)layer_count + 1, sizeof(*lent->layers));
	if (!layers || !attributes || !lent->layers) {
		PyErr_NoMemory();
		goto out;
	}
	if (parse_layers(lent, layer_list, layers) < 0 ||
	    parse_attributes(attribute_list, attributes) < 0)
		goto out;
	if (lfs_index_open(&image.index, lent->index.buf,
			   (size_t)lent->index.len) != LFS_OK) {
		corrupt("rootfs index");
		goto out;
	}
	if (lfs_provenance_open(&image.provenance, lent->provenance.buf,
				(size_t)lent->provenance.len) != LFS_OK) {
		corrupt("provenance table");
		goto out;
	}
	if (image.index.device_count != (size_t)layer_count) {
		PyErr_Format(PyExc_ValueError,
			     "layers: got %zd, expected %u, as the index has",
			     layer_count, (unsigned)image.index.device_count);
		goto out;
	}
	image.layers = layers;
	image.attributes = attributes;
	image.attribute_count = (size_t)attribute_count;
	error = lfs_server_create(&server, fd, &image, options);
	if (error) {
		errno = error;
		PyErr_SetFromErrno(PyExc_OSError);
	}
out:
	PyMem_Free(layers);
	PyMem_Free(attributes);
	return server;
}

void module_image_give_back(struct lent_image *lent)
{
	Py_ssize_t i;

	for (i = 0; i < lent->layer_count; i++) {
		PyBuffer_Release(&lent->layers[i].table);
		PyBuffer_Release(&lent->layers[i].states);
	}
	PyMem_Free(lent->layers);
	lent->layers = NULL;
	lent->layer_count = 0;
	PyBuffer_Release(&lent->index);
	PyBuffer_Release(&lent->provenance);
}

int module_image_clones(PyObject *list, int *clones, uint32_t *count)
{
	Py_ssize_t i, size = list ? PyList_Size(list) : 0;

	if (size > LFS_MAX_THREADS) {
		PyErr_Format(PyExc_ValueError,
			     "clones: got %zd, expected at most %d", size,
			     LFS_MAX_THREADS);
		return -1;
	}
	for (i = 0; i < size; i++) {
		clones[i] = (int)PyLong_AsLong(PyList_GetItem(list, i));
		if (PyErr_Occurred())
			return -1;
	}
	*count = (uint32_t)size;
	return 0;
}
