/* Shared maps, which change without a call. */
#ifndef LAZYFS_CRASH_MAPS_H
#define LAZYFS_CRASH_MAPS_H

#include <errno.h>

#include "log.h"

/* The program's own functions may have these names. */
#pragma GCC visibility push(hidden)

/* Write down what has changed in the maps, under the lock. */
void look_at_maps(void);

/* Make a call and write it down, when it has not failed. */
#define WITHIN(result, call, ...)                     \
	do {                                          \
		int saved;                            \
		take_lock();                          \
		look_at_maps();                       \
		result = call;                        \
		saved = errno;                        \
		if (result != -1)                     \
			write_down(&(struct record){__VA_ARGS__}); \
		let_go();                             \
		errno = saved;                        \
	} while (0)

#pragma GCC visibility pop

#endif /* LAZYFS_CRASH_MAPS_H */
