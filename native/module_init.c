/* SPDX-License-Identifier: Apache-2.0 */
/* lazyfs._native: what is in it, and what else there is of lazyfs_core.h. */
#include "module.h"

#include <errno.h>

#include "lazyfs_guard.h"
#include "lazyfs_server.h"
#include "lazyfs_window.h"
#include "module_server.h"
#include "module_toc.h"

static PyObject *keep_used(PyObject *module, PyObject *args)
{
	Py_buffer window, low, high;
	PyObject *kept = NULL;

	(void)module;
	if (!PyArg_ParseTuple(args, "y*y*y*", &window, &low, &high))
		return NULL;
	if (low.len != high.len)
		PyErr_SetString(PyExc_ValueError,
				"halves of places: got two lengths");
	else
		kept = PyBytes_FromStringAndSize(NULL, window.len);
	if (kept)
		lfs_window_keep((uint8_t *)PyBytes_AsString(kept), window.buf,
				(size_t)window.len, low.buf, high.buf,
				(size_t)low.len);
	PyBuffer_Release(&window);
	PyBuffer_Release(&low);
	PyBuffer_Release(&high);
	return kept;
}

static PyObject *guard(PyObject *module, PyObject *args)
{
	Py_buffer mapped;
	int error;

	(void)module;
	if (!PyArg_ParseTuple(args, "y*", &mapped))
		return NULL;
	error = lfs_guard(mapped.buf, (size_t)mapped.len);
	PyBuffer_Release(&mapped);
	if (error) {
		errno = error;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	Py_RETURN_NONE;
}

static PyObject *unguard(PyObject *module, PyObject *args)
{
	Py_buffer mapped;

	(void)module;
	if (!PyArg_ParseTuple(args, "y*", &mapped))
		return NULL;
	lfs_unguard(mapped.buf);
	PyBuffer_Release(&mapped);
	Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
	{"guard", guard, METH_VARARGS, NULL},
	{"unguard", unguard, METH_VARARGS, NULL},
	{"keep_used", keep_used, METH_VARARGS, NULL},
	{"scan_toc", scan_toc, METH_VARARGS, NULL},
	{"has_plain_keys", has_plain_keys, METH_VARARGS, NULL},
	{"merge_tocs", merge_tocs, METH_VARARGS, NULL},
	{NULL, NULL, 0, NULL},
};

/* Two builds that are mixed up would misread each other: refuse to be imported. */
static int check_interface(void)
{
	PyObject *package = PyImport_ImportModule("lazyfs");
	PyObject *wanted;
	int is_same;

	if (!package)
		return -1;
	wanted = PyObject_GetAttrString(package, "CORE_INTERFACE");
	Py_DECREF(package);
	if (!wanted)
		return -1;
	is_same = PyUnicode_Check(wanted) &&
		  PyUnicode_CompareWithASCIIString(wanted, LFS_INTERFACE) == 0;
	Py_DECREF(wanted);
	if (is_same)
		return 0;
	PyErr_SetString(PyExc_ImportError,
			"it was compiled for another release of lazyfs: install "
			"lazyfs again, or run make native");
	return -1;
}

static int module_exec(PyObject *module)
{
	PyObject *type = PyType_FromModuleAndSpec(module, &server_spec, NULL);
	struct module_state *state = PyModule_GetState(module);
	int result;

	if (!type)
		return -1;
	if (check_interface() < 0) {
		Py_DECREF(type);
		return -1;
	}
	result = PyModule_AddType(module, (PyTypeObject *)type);
	Py_DECREF(type);
	state->toc = (PyTypeObject *)PyType_FromModuleAndSpec(module, &toc_spec,
							      NULL);
	state->tree = (PyTypeObject *)PyType_FromModuleAndSpec(
		module, &tree_spec, NULL);
	if (result < 0 || !state->toc || !state->tree ||
	    PyModule_AddType(module, state->toc) < 0 ||
	    PyModule_AddType(module, state->tree) < 0 ||
	    PyModule_AddIntConstant(module, "MISS", LFS_EVENT_MISS) < 0 ||
	    PyModule_AddIntConstant(module, "ATTRIBUTE", LFS_EVENT_ATTRIBUTE) <
		    0 ||
	    PyModule_AddIntConstant(module, "HINT", LFS_EVENT_HINT) < 0 ||
	    PyModule_AddIntConstant(module, "FAULT", LFS_EVENT_FAULT) < 0 ||
	    PyModule_AddIntConstant(module, "MAX_THREADS", LFS_MAX_THREADS) < 0)
		return -1;
	return 0;
}

static PyModuleDef_Slot module_slots[] = {
	{Py_mod_exec, module_exec},
	{0, NULL},
};

static struct PyModuleDef module_definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_native",
	.m_doc = "The native driver's core, and the index writer.",
	.m_size = sizeof(struct module_state),
	.m_methods = module_methods,
	.m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__native(void); /* the interpreter looks for the name */

PyMODINIT_FUNC PyInit__native(void)
{
	return PyModuleDef_Init(&module_definition);
}
