/* Files: opened, written, cut. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "log.h"
#include "maps.h"
#include "paths.h"

/* The C library's functions themselves. */

#define NEXT(name) ((__typeof__(&name))next(#name))

static void *next(const char *name)
{
	void *found = dlsym(RTLD_NEXT, name);

	if (!found)
		abort();
	return found;
}

/* Opening. */

static int open_recorded(int at, const char *path, int flags, mode_t mode)
{
	char name[NAME_MAX + 1];
	uint64_t folder, object = 0, before = 0;
	int64_t size = 0;
	int fd, saved;
	bool is_anonymous = (flags & O_TMPFILE) == O_TMPFILE;

	if (boot_id && !strcmp(path, "/proc/sys/kernel/random/boot_id"))
		path = boot_id;
	if (!(flags & (O_CREAT | O_TRUNC)) && !is_anonymous)
		return (int)syscall(SYS_openat, at, path, flags, mode);
	if (!is_recorded_path(at, path, &folder, name))
		return (int)syscall(SYS_openat, at, path, flags, mode);
	take_lock();
	look_at_maps();
	if (!is_anonymous)
		before = number_of(at, path, &size);
	fd = (int)syscall(SYS_openat, at, path, flags, mode);
	saved = errno;
	if (fd >= 0 && is_recorded(fd, &object, NULL)) {
		if (is_anonymous)
			write_down(&(struct record){.kind = CREATE, .object = object});
		else if (before != object)
			write_down(&(struct record){
				.kind = CREATE, .object = object, .folder = folder, .name = name});
		else if (flags & O_TRUNC && size)
			write_down(&(struct record){.kind = TRUNCATE, .object = object});
	}
	let_go();
	errno = saved;
	return fd;
}

#define OPENS(name)                                                              \
	int name(const char *path, int flags, ...)                               \
	{                                                                        \
		va_list more;                                                    \
		va_start(more, flags);                                           \
		mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0; \
		va_end(more);                                                    \
		return open_recorded(AT_FDCWD, path, flags, mode);               \
	}
#define OPENS_AT(name)                                                           \
	int name(int at, const char *path, int flags, ...)                       \
	{                                                                        \
		va_list more;                                                    \
		va_start(more, flags);                                           \
		mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0; \
		va_end(more);                                                    \
		return open_recorded(at, path, flags, mode);                     \
	}
OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)

int __open_2(const char *path, int flags) { return open_recorded(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return open_recorded(AT_FDCWD, path, flags, 0); }
int __openat_2(int at, const char *path, int flags) { return open_recorded(at, path, flags, 0); }
int __openat64_2(int at, const char *path, int flags) { return open_recorded(at, path, flags, 0); }
int creat(const char *path, mode_t mode)
{
	return open_recorded(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
int creat64(const char *path, mode_t mode)
{
	return open_recorded(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

/* Writing: what was written is read back, whoever's buffers it was in. */

static void write_down_range(int fd, uint64_t object, int64_t offset, size_t size)
{
	char entry[64], *data = malloc(size ? size : 1);
	int reading;
	ssize_t got;

	snprintf(entry, sizeof(entry), "/proc/self/fd/%d", fd);
	reading = raw_open(AT_FDCWD, entry, O_RDONLY);
	got = reading < 0 ? -1 : syscall(SYS_pread64, reading, data, size, offset);
	if (got != (ssize_t)size)
		abort();
	write_down(&(struct record){
		.kind = WRITE, .object = object, .offset = offset, .data = data, .data_size = size});
	syscall(SYS_close, reading);
	free(data);
}

/* *offset* is -1 where the call has moved the descriptor's own. */
#define WRITES(fd, call, place)                                                             \
	do {                                                                                \
		uint64_t object;                                                            \
		ssize_t done;                                                               \
		int saved;                                                                  \
		if (!is_recorded(fd, &object, NULL))                                        \
			return call;                                                        \
		take_lock();                                                                \
		look_at_maps();                                                             \
		done = call;                                                                \
		saved = errno;                                                              \
		if (done > 0) {                                                             \
			int64_t first = (place);                                            \
			if (first < 0)                                                      \
				first = syscall(SYS_lseek, fd, 0, SEEK_CUR) - done;         \
			write_down_range(fd, object, first, (size_t)done);                  \
		}                                                                           \
		let_go();                                                                   \
		errno = saved;                                                              \
		return done;                                                                \
	} while (0)

ssize_t write(int fd, const void *data, size_t size)
{
	WRITES(fd, syscall(SYS_write, fd, data, size), -1);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
	WRITES(fd, syscall(SYS_pwrite64, fd, data, size, offset), offset);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
	WRITES(fd, syscall(SYS_pwrite64, fd, data, size, offset), offset);
}
ssize_t writev(int fd, const struct iovec *parts, int count)
{
	WRITES(fd, syscall(SYS_writev, fd, parts, count), -1);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
	WRITES(fd, syscall(SYS_pwritev, fd, parts, count, offset, 0), offset);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
	WRITES(fd, syscall(SYS_pwritev, fd, parts, count, offset, 0), offset);
}
ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
	WRITES(fd, syscall(SYS_pwritev2, fd, parts, count, offset, 0, flags), offset);
}
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags)
{
	WRITES(fd, syscall(SYS_pwritev2, fd, parts, count, offset, 0, flags), offset);
}
ssize_t sendfile(int fd, int source, off_t *from, size_t size)
{
	WRITES(fd, syscall(SYS_sendfile, fd, source, from, size), -1);
}
ssize_t sendfile64(int fd, int source, off64_t *from, size_t size)
{
	WRITES(fd, syscall(SYS_sendfile, fd, source, from, size), -1);
}
ssize_t copy_file_range(
	int source, off64_t *from, int fd, off64_t *to, size_t size, unsigned flags)
{
	int64_t start = to ? *to : -1;

	WRITES(fd, syscall(SYS_copy_file_range, source, from, fd, to, size, flags), start);
}

/* Cloning of whole files is refused: everybody has another way. */
int ioctl(int fd, unsigned long request, ...)
{
	va_list more;
	void *argument;
	uint64_t object;

	va_start(more, request);
	argument = va_arg(more, void *);
	va_end(more);
	if ((request == FICLONE || request == FICLONERANGE) && is_recorded(fd, &object, NULL)) {
		errno = EOPNOTSUPP;
		return -1;
	}
	return NEXT(ioctl)(fd, request, argument);
}

/* Sizes. */

static int truncate_recorded(int fd, off64_t size)
{
	uint64_t object;
	int result;

	if (!is_recorded(fd, &object, NULL))
		return (int)syscall(SYS_ftruncate, fd, size);
	WITHIN(result, (int)syscall(SYS_ftruncate, fd, size),
	       .kind = TRUNCATE, .object = object, .size = size);
	return result;
}
int ftruncate(int fd, off_t size) { return truncate_recorded(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncate_recorded(fd, size); }

static int truncate_path(const char *path, off64_t size)
{
	int fd = raw_open(AT_FDCWD, path, O_WRONLY), result, saved;

	if (fd < 0)
		return -1;
	result = truncate_recorded(fd, size);
	saved = errno;
	syscall(SYS_close, fd);
	errno = saved;
	return result;
}
int truncate(const char *path, off_t size) { return truncate_path(path, size); }
int truncate64(const char *path, off64_t size) { return truncate_path(path, size); }

static int allocate_recorded(int fd, int mode, off64_t offset, off64_t size)
{
	uint64_t object;
	int result;
	enum kind kind = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE) ? PUNCH : ALLOCATE;

	if (!is_recorded(fd, &object, NULL))
		return (int)syscall(SYS_fallocate, fd, mode, offset, size);
	if (mode & ~(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE))
		abort(); /* the rest moves data */
	if (mode & FALLOC_FL_KEEP_SIZE && kind == ALLOCATE)
		return (int)syscall(SYS_fallocate, fd, mode, offset, size);
	WITHIN(result, (int)syscall(SYS_fallocate, fd, mode, offset, size),
	       .kind = kind, .object = object, .offset = offset, .size = size);
	return result;
}
int fallocate(int fd, int mode, off_t offset, off_t size)
{
	return allocate_recorded(fd, mode, offset, size);
}
int fallocate64(int fd, int mode, off64_t offset, off64_t size)
{
	return allocate_recorded(fd, mode, offset, size);
}
int posix_fallocate(int fd, off_t offset, off_t size)
{
	return allocate_recorded(fd, 0, offset, size) ? errno : 0;
}
int posix_fallocate64(int fd, off64_t offset, off64_t size)
{
	return allocate_recorded(fd, 0, offset, size) ? errno : 0;
}
