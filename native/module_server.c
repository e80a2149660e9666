/* SPDX-License-Identifier: Apache-2.0 */
/* lazyfs._native.Server: the server of lazyfs_core.h. */
#include "module.h"

#include <errno.h>
#include <string.h>

#include "lazyfs_core.h"

#define MAX_TAKE 256

/* What one layer lends to the server. */
struct lent {
	Py_buffer table;
	Py_buffer states;
};

typedef struct {
	PyObject_HEAD struct lfs_server *server; /* NULL when closed */
	Py_buffer index;
	Py_buffer provenance;
	struct lent *lent;
	Py_ssize_t lent_count;
	unsigned busy; /* calls under way without the interpreter's lock */
} Server;

static void give_back(Server *self)
{
	Py_ssize_t i;

	for (i = 0; i < self->lent_count; i++) {
		PyBuffer_Release(&self->lent[i].table);
		PyBuffer_Release(&self->lent[i].states);
	}
	PyMem_Free(self->lent);
	self->lent = NULL;
	self->lent_count = 0;
	PyBuffer_Release(&self->index);
	PyBuffer_Release(&self->provenance);
}

static void corrupt(const char *what)
{
	PyErr_Format(PyExc_ValueError,
		     "%s: got bytes that contradict themselves", what);
}

/* Fill in 'layers' from a list of (table, states, content fd, digest, diffID).
 */
static int parse_layers(Server *self, PyObject *list, struct lfs_layer *layers)
{
	struct lfs_layer *layer;
	struct lent *lent;
	PyObject *item;
	Py_ssize_t i, count = PyList_Size(list);

	for (i = 0; i < count; i++) {
		item = PyList_GetItem(list, i);
		lent = &self->lent[i];
		layer = &layers[i];
		if (!item ||
		    !PyArg_ParseTuple(item, "y*y*iss", &lent->table,
				      &lent->states, &layer->content_fd,
				      &layer->digest, &layer->diff_id))
			return -1;
		self->lent_count++;
		layer->states = lent->states.buf;
		layer->states_size = (size_t)lent->states.len;
		if (lfs_table_open(&layer->table, lent->table.buf,
				   (size_t)lent->table.len) != LFS_OK) {
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

static int create(Server *self, int fd, PyObject *layer_list,
		  PyObject *attribute_list, const struct lfs_options *options)
{
	Py_ssize_t layer_count = PyList_Size(layer_list);
	Py_ssize_t attribute_count = PyList_Size(attribute_list);
	struct lfs_attribute *attributes;
	struct lfs_image image;
	struct lfs_layer *layers;
	int error, result = -1;

	layers = PyMem_Calloc((size_t)layer_count + 1, sizeof(*layers));
	attributes =
		PyMem_Calloc((size_t)attribute_count + 1, sizeof(*attributes));
	self->lent = PyMem_Calloc((size_t)layer_count + 1, sizeof(*self->lent));
	if (!layers || !attributes || !self->lent) {
		PyErr_NoMemory();
		goto out;
	}
	if (parse_layers(self, layer_list, layers) < 0 ||
	    parse_attributes(attribute_list, attributes) < 0)
		goto out;
	if (lfs_index_open(&image.index, self->index.buf,
			   (size_t)self->index.len) != LFS_OK) {
		corrupt("rootfs index");
		goto out;
	}
	if (lfs_provenance_open(&image.provenance, self->provenance.buf,
				(size_t)self->provenance.len) != LFS_OK) {
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
	error = lfs_server_create(&self->server, fd, &image, options);
	if (error) {
		errno = error;
		PyErr_SetFromErrno(PyExc_OSError);
		goto out;
	}
	result = 0;
out:
	PyMem_Free(layers);
	PyMem_Free(attributes);
	return result;
}

/* Fill in 'clones' from a list of at most LFS_MAX_THREADS descriptors. */
static int parse_clones(PyObject *list, int *clones, uint32_t *count)
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

static PyObject *server_new(PyTypeObject *type, PyObject *args,
			    PyObject *keywords)
{
	static char *names[] = {"fd",		"index",       "provenance",
				"layers",	"attributes",  "threads",
				"max_waiting",	"max_touches", "max_read",
				"share_device", "stays",       "clones",
				"adopted_minor", "serves_devices", NULL};
	struct lfs_options options = {
		.threads = 1,
		.max_waiting = 1u << 18,
		.max_touches = 1u << 20,
		.max_read = LFS_MAX_READ,
	};
	PyObject *layers, *attributes;
	allocfunc allocate;
	Server *self;
	int fd, share_device = 0, stays = 0, serves_devices = 0;
	int clones[LFS_MAX_THREADS];
	PyObject *clone_list = NULL;

	allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	self = (Server *)allocate(type, 0);
	if (!self)
		return NULL;
	if (!PyArg_ParseTupleAndKeywords(
		    args, keywords, "iy*y*O!O!|$IIIIppO!Ip", names, &fd,
		    &self->index, &self->provenance, &PyList_Type, &layers,
		    &PyList_Type, &attributes, &options.threads,
		    &options.max_waiting, &options.max_touches,
		    &options.max_read, &share_device, &stays, &PyList_Type,
		    &clone_list, &options.adopted_minor,
		    &serves_devices)) {
		/* On failure the parser has released what it had taken */
		memset(&self->index, 0, sizeof(self->index));
		memset(&self->provenance, 0, sizeof(self->provenance));
		Py_DECREF(self);
		return NULL;
	}
	options.share_device = share_device;
	options.stays = stays;
	options.serves_devices = serves_devices;
	options.clones = clones;
	if (parse_clones(clone_list, clones, &options.clone_count) < 0 ||
	    create(self, fd, layers, attributes, &options) < 0) {
		Py_DECREF(self);
		return NULL;
	}
	return (PyObject *)self;
}

static void close_server(Server *self)
{
	struct lfs_server *server = self->server;

	self->server = NULL;
	if (server) {
		Py_BEGIN_ALLOW_THREADS lfs_server_destroy(server);
		Py_END_ALLOW_THREADS
	}
	give_back(self);
}

static void server_dealloc(PyObject *object)
{
	PyTypeObject *type = Py_TYPE(object);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	close_server((Server *)object);
	release(object);
	Py_DECREF(type);
}

static struct lfs_server *opened(PyObject *object)
{
	Server *self = (Server *)object;

	if (!self->server)
		PyErr_SetString(PyExc_ValueError, "server: got a closed one");
	return self->server;
}

static PyObject *server_close(PyObject *object, PyObject *unused)
{
	Server *self = (Server *)object;

	(void)unused;
	if (self->busy) {
		PyErr_SetString(PyExc_RuntimeError,
				"server: got close during another call");
		return NULL;
	}
	close_server(self);
	Py_RETURN_NONE;
}

static PyObject *server_start(PyObject *object, PyObject *unused)
{
	struct lfs_server *server = opened(object);
	int error;

	(void)unused;
	if (!server)
		return NULL;
	error = lfs_server_start(server);
	if (error) {
		errno = error;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	Py_RETURN_NONE;
}

static PyObject *server_stop(PyObject *object, PyObject *unused)
{
	struct lfs_server *server = opened(object);
	Server *self = (Server *)object;

	(void)unused;
	if (!server)
		return NULL;
	self->busy++;
	Py_BEGIN_ALLOW_THREADS lfs_server_stop(server);
	Py_END_ALLOW_THREADS self->busy--;
	Py_RETURN_NONE;
}

static PyObject *server_fileno(PyObject *object, PyObject *unused)
{
	struct lfs_server *server = opened(object);

	(void)unused;
	return server ? PyLong_FromLong(lfs_server_event_fd(server)) : NULL;
}

static PyObject *server_is_ready(PyObject *object, PyObject *unused)
{
	struct lfs_server *server = opened(object);

	(void)unused;
	return server ? PyBool_FromLong(lfs_server_is_ready(server)) : NULL;
}

static PyObject *server_is_gone(PyObject *object, PyObject *unused)
{
	struct lfs_server *server = opened(object);

	(void)unused;
	return server ? PyBool_FromLong(lfs_server_is_gone(server)) : NULL;
}

static PyObject *server_take(PyObject *object, PyObject *unused)
{
	struct lfs_server *server = opened(object);
	struct lfs_event events[MAX_TAKE], *event;
	PyObject *list, *item;
	size_t i, count;

	(void)unused;
	if (!server)
		return NULL;
	count = lfs_server_take(server, events, MAX_TAKE);
	list = PyList_New((Py_ssize_t)count);
	for (i = 0; list && i < count; i++) {
		event = &events[i];
		item = Py_BuildValue("(IKIKKKII)", event->kind, event->id,
				     event->device, event->node, event->offset,
				     event->device_offset, event->size,
				     event->number);
		if (!item) {
			Py_DECREF(list);
			return NULL;
		}
		PyList_SetItem(list, (Py_ssize_t)i, item);
	}
	return list;
}

static PyObject *server_answer(PyObject *object, PyObject *args)
{
	struct lfs_server *server = opened(object);
	Server *self = (Server *)object;
	enum lfs_result result;
	unsigned long long id;

	if (!server || !PyArg_ParseTuple(args, "K", &id))
		return NULL;
	self->busy++;
	Py_BEGIN_ALLOW_THREADS result = lfs_server_answer(server, id);
	Py_END_ALLOW_THREADS self->busy--;
	return PyBool_FromLong(result != LFS_CORRUPT);
}

static PyObject *server_waits(PyObject *object, PyObject *args)
{
	struct lfs_server *server = opened(object);
	unsigned long long id;

	if (!server || !PyArg_ParseTuple(args, "K", &id))
		return NULL;
	return PyBool_FromLong(lfs_server_waits(server, id));
}

static PyObject *server_answer_bytes(PyObject *object, PyObject *args)
{
	struct lfs_server *server = opened(object);
	Server *self = (Server *)object;
	enum lfs_result result;
	unsigned long long id;
	Py_buffer bytes;

	if (!server || !PyArg_ParseTuple(args, "Ky*", &id, &bytes))
		return NULL;
	self->busy++;
	Py_BEGIN_ALLOW_THREADS result = lfs_server_answer_bytes(
		server, id, bytes.buf, (size_t)bytes.len);
	Py_END_ALLOW_THREADS self->busy--;
	PyBuffer_Release(&bytes);
	return PyBool_FromLong(result != LFS_CORRUPT);
}

static PyObject *server_answer_attribute(PyObject *object, PyObject *args)
{
	struct lfs_server *server = opened(object);
	unsigned long long id;
	Py_buffer value;

	if (!server || !PyArg_ParseTuple(args, "Ky*", &id, &value))
		return NULL;
	lfs_server_answer_attribute(server, id, value.buf, (size_t)value.len);
	PyBuffer_Release(&value);
	Py_RETURN_NONE;
}

static PyObject *server_answer_error(PyObject *object, PyObject *args)
{
	struct lfs_server *server = opened(object);
	unsigned long long id;
	int error;

	if (!server || !PyArg_ParseTuple(args, "Ki", &id, &error))
		return NULL;
	lfs_server_answer_error(server, id, error);
	Py_RETURN_NONE;
}

static PyObject *server_mark(PyObject *object, PyObject *args)
{
	struct lfs_server *server = opened(object);
	unsigned int device, chunk;

	if (!server || !PyArg_ParseTuple(args, "II", &device, &chunk))
		return NULL;
	lfs_server_mark(server, device, chunk);
	Py_RETURN_NONE;
}

static PyObject *server_ignore_holes(PyObject *object, PyObject *args)
{
	struct lfs_server *server = opened(object);
	unsigned int device;

	if (!server || !PyArg_ParseTuple(args, "I", &device))
		return NULL;
	lfs_server_ignore_holes(server, device);
	Py_RETURN_NONE;
}

static PyObject *server_touches(PyObject *object, PyObject *args)
{
	struct lfs_server *server = opened(object);
	struct lfs_touch touches[MAX_TAKE];
	PyObject *list, *item;
	Py_ssize_t start = 0;
	size_t i, count;

	if (!server || !PyArg_ParseTuple(args, "|n", &start))
		return NULL;
	list = PyList_New(0);
	do {
		count = list ? lfs_server_touches(server, (size_t)start,
						  touches, MAX_TAKE)
			     : 0;
		start += (Py_ssize_t)count;
		for (i = 0; list && i < count; i++) {
			item = Py_BuildValue("(II)", touches[i].device,
					     touches[i].chunk);
			if (!item || PyList_Append(list, item) < 0)
				Py_CLEAR(list);
			Py_XDECREF(item);
		}
	} while (list && count == MAX_TAKE);
	return list;
}

static PyObject *server_statistics(PyObject *object, PyObject *unused)
{
	struct lfs_server *server = opened(object);
	struct lfs_statistics counts;

	(void)unused;
	if (!server)
		return NULL;
	lfs_server_statistics(server, &counts);
	return Py_BuildValue(
		"{s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:I,s:I,s:I,s:K}", "requests",
		counts.requests, "reads", counts.reads, "misses", counts.misses,
		"read_size", counts.read_size, "interrupted",
		counts.interrupted, "refused", counts.refused, "faults",
		counts.faults, "waiting", counts.waiting, "threads",
		counts.threads, "protocol_minor", counts.protocol_minor,
		"init_flags", counts.init_flags);
}

static PyMethodDef server_methods[] = {
	{"start", server_start, METH_NOARGS, NULL},
	{"stop", server_stop, METH_NOARGS, NULL},
	{"close", server_close, METH_NOARGS, NULL},
	{"fileno", server_fileno, METH_NOARGS, NULL},
	{"is_ready", server_is_ready, METH_NOARGS, NULL},
	{"is_gone", server_is_gone, METH_NOARGS, NULL},
	{"take", server_take, METH_NOARGS, NULL},
	{"answer", server_answer, METH_VARARGS, NULL},
	{"waits", server_waits, METH_VARARGS, NULL},
	{"answer_bytes", server_answer_bytes, METH_VARARGS, NULL},
	{"answer_attribute", server_answer_attribute, METH_VARARGS, NULL},
	{"answer_error", server_answer_error, METH_VARARGS, NULL},
	{"mark", server_mark, METH_VARARGS, NULL},
	{"ignore_holes", server_ignore_holes, METH_VARARGS, NULL},
	{"touches", server_touches, METH_VARARGS, NULL},
	{"statistics", server_statistics, METH_NOARGS, NULL},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot server_slots[] = {
	{Py_tp_doc, "Answers one FUSE connection in threads of its own."},
	{Py_tp_new, server_new},
	{Py_tp_dealloc, server_dealloc},
	{Py_tp_methods, server_methods},
	{0, NULL},
};

PyType_Spec server_spec = {
	.name = "lazyfs._native.Server",
	.basicsize = sizeof(Server),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = server_slots,
};
