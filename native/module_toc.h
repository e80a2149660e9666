/* SPDX-License-Identifier: Apache-2.0 */
/* lazyfs._native.Toc and Tree, and the functions that make them. */
#ifndef LAZYFS_MODULE_TOC_H
#define LAZYFS_MODULE_TOC_H

#include "module.h"

extern PyType_Spec toc_spec, tree_spec;

PyObject *scan_toc(PyObject *module, PyObject *args);
PyObject *has_plain_keys(PyObject *module, PyObject *args);
PyObject *merge_tocs(PyObject *module, PyObject *args);

#endif /* LAZYFS_MODULE_TOC_H */
