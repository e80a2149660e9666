/* SPDX-License-Identifier: Apache-2.0 */
/* lazyfs._native.Server. */
#ifndef LAZYFS_MODULE_SERVER_H
#define LAZYFS_MODULE_SERVER_H

#include "module.h"

extern PyType_Spec server_spec;

#endif /* LAZYFS_MODULE_SERVER_H */
