/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the Python module share: the only ones that know Python.
 * They parse arguments, hold the buffers that the core reads, and let go of the
 * interpreter's lock around what may wait.  lazyfs/_native.pyi describes types
 * and errors.
 */
#ifndef LAZYFS_MODULE_H
#define LAZYFS_MODULE_H

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000 /* one wheel for 3.11 and all later */
#endif
#define PY_SSIZE_T_CLEAN
#define LFS_INTERFACE "1471f2d7e2cebe10" /* lazyfs/_native.pyi */

#include <Python.h>

struct module_state {
	PyTypeObject *toc;
	PyTypeObject *tree;
};

#endif /* LAZYFS_MODULE_H */
