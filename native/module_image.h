/* SPDX-License-Identifier: Apache-2.0 */
/* What Python lends to a server, and how it says that. */
#ifndef LAZYFS_MODULE_IMAGE_H
#define LAZYFS_MODULE_IMAGE_H

#include "module.h"

#include <stdint.h>

#include "lazyfs_server.h"

/* What one layer lends to the server. */
struct lent_layer {
	Py_buffer table;
	Py_buffer states;
};

/* The buffers of an image; zeros before anything is lent. */
struct lent_image {
	Py_buffer index;
	Py_buffer provenance;
	struct lent_layer *layers;
	Py_ssize_t layer_count;
};

/* module_image_open() makes a server of what is lent; it takes the buffers of
 * the layers out of 'layer_list', a list of (table, states, content fd, digest,
 * diffID).  'attribute_list' has (name, value or None).  NULL: an exception is
 * set, and what was lent is still to be given back. */
struct lfs_server *module_image_open(struct lent_image *lent, int fd,
				     PyObject *layer_list,
				     PyObject *attribute_list,
				     const struct lfs_options *options);

/* module_image_give_back() may be called again. */
void module_image_give_back(struct lent_image *lent);

/* module_image_clones() fills in 'clones' from a list of at most
 * LFS_MAX_THREADS descriptors, or NULL.  Returns 0, or -1 and an exception. */
int module_image_clones(PyObject *list, int *clones, uint32_t *count);

#endif /* LAZYFS_MODULE_IMAGE_H */
