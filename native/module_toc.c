/* SPDX-License-Identifier: Apache-2.0 */
/* lazyfs._native.Toc and Tree: the index writer of lazyfs_core.h. */
#include "module_toc.h"

#include <string.h>

#include "lazyfs_result.h"
#include "lazyfs_toc.h"
#include "lazyfs_tree.h"

typedef struct {
	PyObject_HEAD struct lfs_toc *toc;
	Py_buffer json;
} Toc;

typedef struct {
	PyObject_HEAD struct lfs_tree *tree;
	struct lfs_toc **tocs;
	PyObject *layers; /* a tuple: the tree reads what its objects hold */
} Tree;

static void *make(PyTypeObject *type)
{
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);

	return alloc(type, 0);
}

static void discard(PyObject *object)
{
	PyTypeObject *type = Py_TYPE(object);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	release(object);
	Py_DECREF(type);
}

PyObject *scan_toc(PyObject *module, PyObject *args)
{
	struct module_state *state = PyModule_GetState(module);
	unsigned long long given[12];
	struct lfs_toc_limits limits;
	struct lfs_toc *toc = NULL;
	enum lfs_result result;
	Py_buffer data;
	Toc *self;

	if (!PyArg_ParseTuple(args, "y*b(KKKKKKKKKKKK)", &data, &limits.codec,
			      &given[0], &given[1], &given[2], &given[3],
			      &given[4], &given[5], &given[6], &given[7],
			      &given[8], &given[9], &given[10], &given[11]))
		return NULL;
	limits.blob_size = given[0];
	limits.ratio = given[1];
	limits.entries = given[2];
	limits.path_size = given[3];
	limits.component_size = given[4];
	limits.depth = given[5];
	limits.implied_size = given[6];
	limits.link_size = given[7];
	limits.chunk_size = given[8];
	limits.stream_size = given[9];
	limits.device_size = given[10];
	limits.block_size = given[11];
	Py_BEGIN_ALLOW_THREADS
	result = lfs_toc_scan(&toc, data.buf, (size_t)data.len, &limits);
	Py_END_ALLOW_THREADS
	if (result != LFS_OK) {
		PyBuffer_Release(&data);
		Py_RETURN_NONE;
	}
	self = make(state->toc);
	if (!self) {
		lfs_toc_free(toc);
		PyBuffer_Release(&data);
		return NULL;
	}
	self->toc = toc;
	self->json = data;
	return (PyObject *)self;
}

PyObject *has_plain_keys(PyObject *module, PyObject *args)
{
	Py_buffer data, names;
	bool result;

	(void)module;
	if (!PyArg_ParseTuple(args, "y*y*", &data, &names))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	result = lfs_toc_has_plain_keys(data.buf, (size_t)data.len, names.buf,
					(size_t)names.len);
	Py_END_ALLOW_THREADS
	PyBuffer_Release(&data);
	PyBuffer_Release(&names);
	return PyBool_FromLong(result);
}

static void toc_dealloc(PyObject *object)
{
	lfs_toc_free(((Toc *)object)->toc);
	PyBuffer_Release(&((Toc *)object)->json);
	discard(object);
}

static PyObject *toc_facts(PyObject *object, PyObject *unused)
{
	struct lfs_toc_facts facts;
	PyObject *prefetch_end;

	(void)unused;
	lfs_toc_facts(((Toc *)object)->toc, &facts);
	if (facts.has_prefetch_end)
		prefetch_end = PyLong_FromUnsignedLongLong(facts.prefetch_end);
	else
		prefetch_end = Py_NewRef(Py_None);
	return Py_BuildValue(
		"(KKKNy#)", (unsigned long long)facts.entry_count,
		(unsigned long long)facts.chunk_count,
		(unsigned long long)facts.device_size, prefetch_end,
		facts.tar_split ? (const char *)facts.tar_split : "",
		(Py_ssize_t)facts.tar_split_size);
}

static PyObject *toc_xattrs(PyObject *object, PyObject *unused)
{
	struct lfs_toc_xattrs found;
	PyObject *list, *item;
	uint32_t from = 0;

	(void)unused;
	list = PyList_New(0);
	while (list && lfs_toc_next_xattrs(((Toc *)object)->toc, &from,
					   &found) == LFS_OK) {
		item = Py_BuildValue("(Iy#y#)", (unsigned)found.entry,
				     (const char *)found.path,
				     (Py_ssize_t)found.path_size,
				     (const char *)found.json,
				     (Py_ssize_t)found.json_size);
		if (!item || PyList_Append(list, item) < 0)
			Py_CLEAR(list);
		Py_XDECREF(item);
	}
	return list;
}

static PyObject *toc_table(PyObject *object, PyObject *args)
{
	struct lfs_toc *toc = ((Toc *)object)->toc;
	struct lfs_toc_extent extent;
	unsigned long long payload_end;
	struct lfs_toc_facts facts;
	enum lfs_result result;
	PyObject *records;
	uint8_t *bytes;

	if (!PyArg_ParseTuple(args, "K", &payload_end))
		return NULL;
	lfs_toc_facts(toc, &facts);
	records = PyBytes_FromStringAndSize(
		NULL, (Py_ssize_t)(facts.chunk_count * LFS_RECORD_SIZE));
	if (!records)
		return NULL;
	bytes = (uint8_t *)PyBytes_AsString(records);
	Py_BEGIN_ALLOW_THREADS
	result = lfs_toc_table(toc, payload_end, bytes, &extent);
	Py_END_ALLOW_THREADS
	if (result != LFS_OK) {
		Py_DECREF(records);
		Py_RETURN_NONE;
	}
	return Py_BuildValue("(NKKN)", records, (unsigned long long)extent.end,
			     (unsigned long long)extent.payload_size,
			     PyBool_FromLong(extent.in_blob_order));
}

PyObject *merge_tocs(PyObject *module, PyObject *args)
{
	struct module_state *state = PyModule_GetState(module);
	enum lfs_result result;
	Py_ssize_t i, count;
	PyObject *item;
	Tree *self;

	self = make(state->tree);
	if (!self)
		return NULL;
	if (!PyArg_ParseTuple(args, "O!", &PyTuple_Type, &self->layers)) {
		self->layers = NULL;
		Py_DECREF(self);
		return NULL;
	}
	Py_INCREF(self->layers);
	count = PyTuple_Size(self->layers);
	self->tocs = PyMem_Calloc((size_t)count + 1, sizeof(*self->tocs));
	if (!self->tocs) {
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	for (i = 0; i < count; i++) {
		item = PyTuple_GetItem(self->layers, i);
		if (!PyObject_TypeCheck(item, state->toc)) {
			PyErr_SetString(PyExc_TypeError, "expected a Toc");
			Py_DECREF(self);
			return NULL;
		}
		self->tocs[i] = ((Toc *)item)->toc;
	}
	Py_BEGIN_ALLOW_THREADS
	result = lfs_tree_merge(&self->tree, self->tocs, (size_t)count);
	Py_END_ALLOW_THREADS
	if (result == LFS_OK)
		return (PyObject *)self;
	Py_DECREF(self);
	Py_RETURN_NONE;
}

static void tree_dealloc(PyObject *object)
{
	Tree *self = (Tree *)object;

	lfs_tree_free(self->tree);
	PyMem_Free(self->tocs);
	Py_XDECREF(self->layers);
	discard(object);
}

static PyObject *tree_xattrs(PyObject *object, PyObject *unused)
{
	struct lfs_tree *tree = ((Tree *)object)->tree;
	size_t i, count = lfs_tree_xattrs(tree, NULL, 0);
	struct lfs_tree_place *places;
	PyObject *list, *item;

	(void)unused;
	places = PyMem_Calloc(count + 1, sizeof(*places));
	if (!places)
		return PyErr_NoMemory();
	lfs_tree_xattrs(tree, places, count);
	list = PyList_New(0);
	for (i = 0; list && i < count; i++) {
		item = Py_BuildValue("(II)", (unsigned)places[i].layer,
				     (unsigned)places[i].entry);
		if (!item || PyList_Append(list, item) < 0)
			Py_CLEAR(list);
		Py_XDECREF(item);
	}
	PyMem_Free(places);
	return list;
}

/* Write the numbered tree; return (image, provenance, inodes, root's nid) or
 * None. */
static PyObject *write_tree(struct lfs_tree *tree)
{
	uint64_t inode_count, image_size, provenance_size;
	PyObject *image, *provenance = NULL;
	enum lfs_result result;
	uint8_t *bytes, *records;

	lfs_tree_sizes(tree, &inode_count, &image_size, &provenance_size);
	image = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)image_size);
	if (image)
		provenance = PyBytes_FromStringAndSize(
			NULL, (Py_ssize_t)provenance_size);
	if (!provenance) {
		Py_XDECREF(image);
		return NULL;
	}
	bytes = (uint8_t *)PyByteArray_AsString(image);
	records = (uint8_t *)PyBytes_AsString(provenance);
	Py_BEGIN_ALLOW_THREADS
	memset(bytes, 0, image_size);
	result = lfs_tree_write(tree, bytes, records);
	Py_END_ALLOW_THREADS
	if (result == LFS_OK)
		return Py_BuildValue("(NNKK)", image, provenance,
				     (unsigned long long)inode_count,
				     (unsigned long long)lfs_tree_root(tree));
	Py_DECREF(image);
	Py_DECREF(provenance);
	Py_RETURN_NONE;
}

static PyObject *tree_write(PyObject *object, PyObject *args)
{
	struct lfs_tree *tree = ((Tree *)object)->tree;
	struct lfs_body *bodies, root = {NULL, 0};
	PyObject *list, *item, *result = NULL;
	Py_ssize_t i, count, root_size = 0;
	const char *root_bytes = NULL;
	unsigned long long start;

	if (!PyArg_ParseTuple(args, "KO!z#", &start, &PyTuple_Type, &list,
			      &root_bytes, &root_size))
		return NULL;
	count = PyTuple_Size(list); /* a tuple: nobody changes it meanwhile */
	bodies = PyMem_Calloc((size_t)count + 1, sizeof(*bodies));
	if (!bodies)
		return PyErr_NoMemory();
	for (i = 0; i < count; i++) {
		item = PyTuple_GetItem(list, i);
		bodies[i].bytes = (const uint8_t *)PyBytes_AsString(item);
		if (!bodies[i].bytes)
			goto out;
		bodies[i].size = (size_t)PyBytes_Size(item);
	}
	root.bytes = (const uint8_t *)root_bytes;
	root.size = (size_t)root_size;
	if (lfs_tree_number(tree, start, bodies, (size_t)count,
			    root_bytes ? &root : NULL) == LFS_OK)
		result = write_tree(tree);
	else
		result = Py_NewRef(Py_None);
out:
	PyMem_Free(bodies);
	return result;
}

static PyMethodDef toc_methods[] = {
	{"facts", toc_facts, METH_NOARGS, NULL},
	{"xattrs", toc_xattrs, METH_NOARGS, NULL},
	{"table", toc_table, METH_VARARGS, NULL},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot toc_slots[] = {
	{Py_tp_doc, "A scanned table of contents."},
	{Py_tp_dealloc, toc_dealloc},
	{Py_tp_methods, toc_methods},
	{0, NULL},
};

PyType_Spec toc_spec = {
	.name = "lazyfs._native.Toc",
	.basicsize = sizeof(Toc),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE |
		 Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = toc_slots,
};

static PyMethodDef tree_methods[] = {
	{"xattrs", tree_xattrs, METH_NOARGS, NULL},
	{"write", tree_write, METH_VARARGS, NULL},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot tree_slots[] = {
	{Py_tp_doc, "The layers of an image, merged."},
	{Py_tp_dealloc, tree_dealloc},
	{Py_tp_methods, tree_methods},
	{0, NULL},
};

PyType_Spec tree_spec = {
	.name = "lazyfs._native.Tree",
	.basicsize = sizeof(Tree),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE |
		 Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = tree_slots,
};
