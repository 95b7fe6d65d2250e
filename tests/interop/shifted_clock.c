/* Runs a program whose wall clock is off: shifted_clock SECONDS PROGRAM ARGUMENTS...
 *
 * The process becomes the program (same pid). Programs that ask the kernel's vDSO for the time without a C library, as those
 * written in Go do, cannot be reached by preloading; so a helper process stops the new image before its first instruction and
 * replaces the time functions of its private vDSO copy by ones that ask the kernel and add SECONDS to CLOCK_REALTIME. Other
 * clocks, and the children of the program, keep the right time. x86-64 Linux; exit status 77 elsewhere. */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef __x86_64__
int main(void) {
  fprintf(stderr, "shifted_clock: x86-64 only\n");
  return 77;
}
#else

static void die(const char *what) {
  fprintf(stderr, "shifted_clock: %s: %s\n", what, strerror(errno));
  _exit(1);
}

/* clock_gettime(edi, rsi): the system call; on success and for CLOCK_REALTIME add the shift to tv_sec. */
static const uint8_t clock_gettime_code[] = {0xb8, 0xe4, 0, 0,    0,    0x0f, 0x05, 0x85, 0xc0, 0x75, 0x0b, 0x85,
                                             0xff, 0x75, 0x07, 0x48, 0x81, 0x06, 0,    0,    0,    0,    0xc3};
/* gettimeofday(rdi, rsi): the same for tv_sec, if there is a place for it. */
static const uint8_t gettimeofday_code[] = {0xb8, 0x60, 0, 0,    0,    0x0f, 0x05, 0x85, 0xc0, 0x75, 0x0c, 0x48,
                                            0x85, 0xff, 0x74, 0x07, 0x48, 0x81, 0x07, 0,    0,    0,    0,    0xc3};
/* time(rdi): the result, and the place if there is one. */
static const uint8_t time_code[] = {0xb8, 0xc9, 0, 0,    0,    0x0f, 0x05, 0x48, 0x05, 0,    0,    0,
                                    0,    0x48, 0x85, 0xff, 0x74, 0x03, 0x48, 0x89, 0x07, 0xc3};

static const struct patch {
  const char *symbol;
  const uint8_t *code;
  size_t size, shift_at;
} patches[] = {{"__vdso_clock_gettime", clock_gettime_code, sizeof clock_gettime_code, 18},
               {"__vdso_gettimeofday", gettimeofday_code, sizeof gettimeofday_code, 19},
               {"__vdso_time", time_code, sizeof time_code, 9}};

/* Offset of a function in the vDSO, the same in every process; 0 if there is none. */
static uint64_t vdso_offset(const char *name) {
  const uint8_t *base = (const uint8_t *)getauxval(AT_SYSINFO_EHDR);
  if (!base) die("no vDSO");
  const Elf64_Ehdr *head = (const Elf64_Ehdr *)base;
  const Elf64_Phdr *segment = (const Elf64_Phdr *)(base + head->e_phoff);
  const Elf64_Dyn *dynamic = NULL;
  uint64_t load = 0;
  for (int i = 0; i < head->e_phnum; i++) {
    if (segment[i].p_type == PT_LOAD) load = segment[i].p_vaddr - segment[i].p_offset;
    if (segment[i].p_type == PT_DYNAMIC) dynamic = (const Elf64_Dyn *)(base + segment[i].p_offset);
  }
  if (!dynamic) die("vDSO without symbols");
  const char *strings = NULL;
  const Elf64_Sym *symbols = NULL;
  for (; dynamic->d_tag != DT_NULL; dynamic++) {
    if (dynamic->d_tag == DT_STRTAB) strings = (const char *)(base + dynamic->d_un.d_ptr - load);
    if (dynamic->d_tag == DT_SYMTAB) symbols = (const Elf64_Sym *)(base + dynamic->d_un.d_ptr - load);
  }
  if (!strings || !symbols) die("vDSO without symbols");
  for (const Elf64_Sym *s = symbols + 1; (const char *)s < strings; s++) /* the strings follow the symbols */
    if (!strcmp(strings + s->st_name, name)) return s->st_value - load;
  return 0;
}

static uint64_t vdso_of(pid_t pid) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/auxv", pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  Elf64_auxv_t entry;
  while (fd >= 0 && read(fd, &entry, sizeof entry) == sizeof entry)
    if (entry.a_type == AT_SYSINFO_EHDR) return close(fd), entry.a_un.a_val;
  die(path);
  return 0;
}

static void write_memory(pid_t pid, uint64_t at, const uint8_t *bytes, size_t size) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/mem", pid);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0 || pwrite(fd, bytes, size, (off_t)at) != (ssize_t)size) die(path);
  close(fd);
}

static void patch(pid_t pid, int32_t shift) {
  uint64_t base = vdso_of(pid);
  for (size_t i = 0; i < sizeof patches / sizeof *patches; i++) {
    uint64_t offset = vdso_offset(patches[i].symbol);
    uint8_t code[64];
    if (!offset) die(patches[i].symbol);
    memcpy(code, patches[i].code, patches[i].size);
    memcpy(code + patches[i].shift_at, &shift, sizeof shift);
    write_memory(pid, base + offset, code, patches[i].size);
  }
}

/* Waits in a process of its own for the exec of `target`. */
static void follow(pid_t target, int32_t shift, int ready) {
  int status;
  if (ptrace(PTRACE_SEIZE, target, NULL, (void *)PTRACE_O_TRACEEXEC) < 0) die("ptrace");
  if (write(ready, "", 1) != 1) die("pipe");
  for (;;) {
    if (waitpid(target, &status, __WALL) < 0) die("waitpid");
    if (WIFEXITED(status) || WIFSIGNALED(status)) _exit(1);
    if (status >> 8 == (SIGTRAP | (PTRACE_EVENT_EXEC << 8))) break;
    ptrace(PTRACE_CONT, target, NULL, (void *)(intptr_t)WSTOPSIG(status));
  }
  patch(target, shift);
  ptrace(PTRACE_DETACH, target, NULL, NULL);
  _exit(0);
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: shifted_clock SECONDS PROGRAM ARGUMENTS...\n");
    return 2;
  }
  int32_t shift = (int32_t)strtol(argv[1], NULL, 10);
  int ready[2];
  char byte;
  pid_t self = getpid();
  if (pipe2(ready, O_CLOEXEC) < 0) die("pipe");
  prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
  pid_t child = fork();
  if (child < 0) die("fork");
  if (!child) {
    if (fork() == 0) follow(self, shift, ready[1]);
    _exit(0); /* the helper belongs to init: the program sees no child that it did not start */
  }
  close(ready[1]);
  waitpid(child, NULL, 0);
  if (read(ready[0], &byte, 1) != 1) return 1;
  execvp(argv[2], argv + 2);
  die(argv[2]);
}
#endif
