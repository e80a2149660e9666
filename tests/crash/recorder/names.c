/* Folders and names. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "log.h"
#include "maps.h"
#include "paths.h"

static int make_folder(int at, const char *path, mode_t mode)
{
	char name[NAME_MAX + 1];
	uint64_t folder;
	int result;

	if (!is_recorded_path(at, path, &folder, name))
		return (int)syscall(SYS_mkdirat, at, path, mode);
	WITHIN(result, (int)syscall(SYS_mkdirat, at, path, mode), .kind = MKDIR, .folder = folder,
	       .name = name, .object = number_of(at, path, NULL));
	return result;
}
int mkdir(const char *path, mode_t mode) { return make_folder(AT_FDCWD, path, mode); }
int mkdirat(int at, const char *path, mode_t mode) { return make_folder(at, path, mode); }

static int unlink_recorded(int at, const char *path, int flags)
{
	char name[NAME_MAX + 1];
	uint64_t folder;
	int result;

	if (!is_recorded_path(at, path, &folder, name))
		return (int)syscall(SYS_unlinkat, at, path, flags);
	WITHIN(result, (int)syscall(SYS_unlinkat, at, path, flags), .kind = UNLINK, .folder = folder,
	       .name = name);
	return result;
}
int unlink(const char *path) { return unlink_recorded(AT_FDCWD, path, 0); }
int unlinkat(int at, const char *path, int flags) { return unlink_recorded(at, path, flags); }
int rmdir(const char *path) { return unlink_recorded(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path)
{
	int result = unlink_recorded(AT_FDCWD, path, 0);

	return result && errno == EISDIR ? unlink_recorded(AT_FDCWD, path, AT_REMOVEDIR) : result;
}

static int rename_recorded(int at, const char *path, int to_at, const char *to, unsigned flags)
{
	char name[NAME_MAX + 1], to_name[NAME_MAX + 1];
	uint64_t folder = 0, to_folder = 0;
	bool is_from = is_recorded_path(at, path, &folder, name);
	bool is_to = is_recorded_path(to_at, to, &to_folder, to_name);
	int result;

	if (!is_from && !is_to)
		return (int)syscall(SYS_renameat2, at, path, to_at, to, flags);
	if (is_from != is_to)
		abort(); /* it came from where nothing is recorded */
	WITHIN(result, (int)syscall(SYS_renameat2, at, path, to_at, to, flags),
	       .kind = flags & RENAME_EXCHANGE ? EXCHANGE : RENAME, .folder = folder, .name = name,
	       .other = to_folder, .other_name = to_name, .object = number_of(to_at, to, NULL));
	return result;
}
int rename(const char *path, const char *to)
{
	return rename_recorded(AT_FDCWD, path, AT_FDCWD, to, 0);
}
int renameat(int at, const char *path, int to_at, const char *to)
{
	return rename_recorded(at, path, to_at, to, 0);
}
int renameat2(int at, const char *path, int to_at, const char *to, unsigned flags)
{
	return rename_recorded(at, path, to_at, to, flags);
}

static int link_recorded(int at, const char *path, int to_at, const char *to, int flags)
{
	char name[NAME_MAX + 1];
	uint64_t folder;
	int result;

	if (!is_recorded_path(to_at, to, &folder, name))
		return (int)syscall(SYS_linkat, at, path, to_at, to, flags);
	WITHIN(result, (int)syscall(SYS_linkat, at, path, to_at, to, flags), .kind = LINK,
	       .folder = folder, .name = name, .object = number_of(to_at, to, NULL));
	return result;
}
int link(const char *path, const char *to)
{
	return link_recorded(AT_FDCWD, path, AT_FDCWD, to, 0);
}
int linkat(int at, const char *path, int to_at, const char *to, int flags)
{
	return link_recorded(at, path, to_at, to, flags);
}

static int symlink_recorded(const char *target, int at, const char *path)
{
	char name[NAME_MAX + 1];
	uint64_t folder;
	int result;

	if (!is_recorded_path(at, path, &folder, name))
		return (int)syscall(SYS_symlinkat, target, at, path);
	WITHIN(result, (int)syscall(SYS_symlinkat, target, at, path), .kind = SYMLINK,
	       .folder = folder, .name = name, .object = number_of(at, path, NULL), .data = target,
	       .data_size = strlen(target));
	return result;
}
int symlink(const char *target, const char *path)
{
	return symlink_recorded(target, AT_FDCWD, path);
}
int symlinkat(const char *target, int at, const char *path)
{
	return symlink_recorded(target, at, path);
}
