/* Lets one file-system call of a process fail, for benchmarks/injected_errors.py. Loaded by LD_PRELOAD.

   A call is chosen by its name, a pattern (fnmatch) of its path, and its number among such calls, from 1. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OFF, RECORD, FAIL };
enum { SOUND, FAILS, SHORT };
static int mode, error;
static long chosen, seen;
static char call_name[32], pattern[1024];
static FILE *record;

#define NEXT(name) \
  static __typeof__(name) *next; \
  if (!next) next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* Record every call whose path fits into a file, one line each: the call and the path. */
void inject_record(const char *paths, const char *file) {
  snprintf(pattern, sizeof pattern, "%s", paths);
  record = fopen(file, "w");
  mode = RECORD;
}

/* Let a call fail with an error number; 0: write half of what was given. */
void inject_error(const char *call, const char *paths, long number, int with) {
  snprintf(call_name, sizeof call_name, "%s", call);
  snprintf(pattern, sizeof pattern, "%s", paths);
  chosen = number, seen = 0, error = with;
  mode = FAIL;
}

static int meets(const char *call, const char *path) {
  if (mode == OFF || !path || fnmatch(pattern, path, 0)) return SOUND;
  if (mode == RECORD) {
    int kept = errno;
    mode = OFF; /* The record is a file, too. */
    fprintf(record, "%s %s\n", call, path);
    fflush(record);
    mode = RECORD;
    errno = kept;
    return SOUND;
  }
  if (strcmp(call, call_name) || __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST) != chosen) return SOUND;
  if (!error) return SHORT;
  errno = error;
  return FAILS;
}

static int meets_open(const char *call, int descriptor) {
  char link[64], path[1024];
  if (mode == OFF) return SOUND;
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return SOUND;
  path[length] = 0;
  return meets(call, path);
}

#define WRITE(name, offset_type) \
  ssize_t name(int descriptor, const void *content, size_t count, offset_type offset) { \
    NEXT(name); \
    int fate = meets_open("write", descriptor); \
    return fate == FAILS ? -1 : next(descriptor, content, fate == SHORT && count > 1 ? count / 2 : count, offset); \
  }
WRITE(pwrite, off_t)
WRITE(pwrite64, off64_t)
ssize_t write(int descriptor, const void *content, size_t count) {
  NEXT(write);
  int fate = meets_open("write", descriptor);
  return fate == FAILS ? -1 : next(descriptor, content, fate == SHORT && count > 1 ? count / 2 : count);
}

int fsync(int descriptor) {
  NEXT(fsync);
  return meets_open("fsync", descriptor) == FAILS ? -1 : next(descriptor);
}
int flock(int descriptor, int how) {
  NEXT(flock);
  return meets_open("flock", descriptor) == FAILS ? -1 : next(descriptor, how);
}
int ftruncate(int descriptor, off_t length) {
  NEXT(ftruncate);
  return meets_open("ftruncate", descriptor) == FAILS ? -1 : next(descriptor, length);
}
int ftruncate64(int descriptor, off64_t length) {
  NEXT(ftruncate64);
  return meets_open("ftruncate", descriptor) == FAILS ? -1 : next(descriptor, length);
}
int close(int descriptor) {
  NEXT(close);
  int fate = meets_open("close", descriptor), kept = errno;
  int result = next(descriptor); /* Linux closes the descriptor even if it reports an error. */
  if (fate != FAILS) return result;
  errno = kept;
  return -1;
}

#define OF_PATH(name, call, path, arguments, ...) \
  int name arguments { \
    NEXT(name); \
    return meets(call, path) == FAILS ? -1 : next(__VA_ARGS__); \
  }
OF_PATH(rename, "rename", to, (const char *from, const char *to), from, to)
OF_PATH(renameat, "rename", to, (int a, const char *from, int b, const char *to), a, from, b, to)
OF_PATH(link, "link", to, (const char *from, const char *to), from, to)
OF_PATH(linkat, "link", to, (int a, const char *from, int b, const char *to, int flags), a, from, b, to, flags)
OF_PATH(unlink, "unlink", path, (const char *path), path)
OF_PATH(unlinkat, "unlink", path, (int a, const char *path, int flags), a, path, flags)
OF_PATH(rmdir, "rmdir", path, (const char *path), path)
OF_PATH(mkdir, "mkdir", path, (const char *path, mode_t rights), path, rights)

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    NEXT(name); \
    va_list list; \
    va_start(list, flags); \
    mode_t rights = va_arg(list, mode_t); \
    va_end(list); \
    const char *call = (flags & O_ACCMODE) == O_RDONLY ? "read" : "open"; \
    return meets(call, path) == FAILS ? -1 : next(path, flags, rights); \
  }
OPEN(open)
OPEN(open64)
