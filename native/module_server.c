/* SPDX-License-Identifier: Apache-2.0 */
/* lazyfs._native.Server: the server of lazyfs_server.h. */
#include "module_server.h"

#include <errno.h>
#include <string.h>

#include "lazyfs_result.h"
#include "lazyfs_server.h"
#include "module_image.h"

#define MAX_TAKE 256
/* So much is forgotten at a time, so that what was looked at is still true. */
#define FORGET_SIZE ((uint64_t)128 << 10)

typedef struct {
	PyObject_HEAD struct lfs_server *server; /* NULL when closed */
	struct lent_image lent;
	unsigned busy; /* calls under way without the interpreter's lock */
} Server;

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
		    &self->lent.index, &self->lent.provenance, &PyList_Type,
		    &layers, &PyList_Type, &attributes, &options.threads,
		    &options.max_waiting, &options.max_touches,
		    &options.max_read, &share_device, &stays, &PyList_Type,
		    &clone_list, &options.adopted_minor,
		    &serves_devices)) {
		/* On failure the parser has released what it had taken */
		memset(&self->lent, 0, sizeof(self->lent));
		Py_DECREF(self);
		return NULL;
	}
	options.share_device = share_device;
	options.stays = stays;
	options.serves_devices = serves_devices;
	options.clones = clones;
	if (module_image_clones(clone_list, clones, &options.clone_count) == 0)
		self->server = module_image_open(&self->lent, fd, layers,
						 attributes, &options);
	if (!self->server) {
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
	module_image_give_back(&self->lent);
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

static int append_range(PyObject *list, uint64_t offset, uint64_t size)
{
	PyObject *item = Py_BuildValue("(KK)", offset, size);
	int result = item ? PyList_Append(list, item) : -1;

	Py_XDECREF(item);
	return result;
}

/* Have a piece forgotten, up to 'end' or to pages that are held; -1: an exception
 * is set, 1: the kernel has nothing of the file. */
static int forget_piece(PyObject *object, PyObject *spared, int fd,
			uint64_t node, uint64_t *offset, uint64_t end)
{
	uint64_t start = end, stop = end;
	struct lfs_server *server;
	int error = 0;

	Py_BEGIN_ALLOW_THREADS lfs_settle(fd);
	Py_END_ALLOW_THREADS server = opened(object);
	if (!server)
		return -1;
	lfs_server_held(server, node, *offset, end, &start, &stop);
	start = start < *offset ? *offset : start;
	stop = stop > end ? end : stop;
	if (start > *offset) {
		/* It may take long: the server may be closed meanwhile */
		Py_BEGIN_ALLOW_THREADS error =
			lfs_forget(fd, node, *offset, start - *offset);
		Py_END_ALLOW_THREADS
	}
	if (error == ENOENT)
		return 1;
	if (error) {
		errno = error;
		PyErr_SetFromErrno(PyExc_OSError);
		return -1;
	}
	*offset = stop;
	return stop > start ? append_range(spared, start, stop - start) : 0;
}

static PyObject *server_forget(PyObject *object, PyObject *args)
{
	unsigned long long node, offset, size;
	uint64_t at, end, piece;
	PyObject *spared;
	int result = 0, fd;

	if (!PyArg_ParseTuple(args, "iKKK", &fd, &node, &offset, &size))
		return NULL;
	if (offset > INT64_MAX || size > INT64_MAX - offset) {
		PyErr_SetString(PyExc_ValueError, "forget: got too large a range");
		return NULL;
	}
	spared = PyList_New(0);
	end = offset + size;
	for (at = offset; spared && !result && at < end;) {
		piece = end - at < FORGET_SIZE ? end : at + FORGET_SIZE;
		result = forget_piece(object, spared, fd, node, &at, piece);
	}
	if (result < 0)
		Py_CLEAR(spared);
	return spared;
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
	{"forget", server_forget, METH_VARARGS, NULL},
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
