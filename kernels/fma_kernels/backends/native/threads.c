/* Several threads at once: PyTorch's own, else a pool of ours.
 *
 * PyTorch's OpenMP threads spin for a while after each of its operations: a
 * second pool would compete with them for the cores. So theirs are taken
 * where their library is in the process, whatever its name; nothing is linked
 * against it. A forked child has none of these threads, though the library
 * believes so, and would wait for them: it gets a pool of ours, as do
 * processes without OpenMP.
 *
 * Work is taken piece by piece, so that nobody waits for a thread that did
 * not wake in time, and results do not depend on who did what.
 */
#define _GNU_SOURCE
#include "fma.h"

int64_t fma_take(struct fma_work *work) {
  int64_t taken = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
  return taken < work->count ? taken : -1;
}

#if defined(_WIN32)

void fma_forked(void) {}

void fma_parallel(int64_t threads, int64_t pieces, void (*body)(void *),
                  void *context) {
  (void)threads, (void)pieces;
  body(context);
}

#else
#include <dlfcn.h>
#include <pthread.h>

/* libgomp's entry point of a parallel region; Intel's and LLVM's have it. */
typedef void (*openmp_parallel)(void (*body)(void *), void *context,
                                unsigned threads, unsigned flags);
static openmp_parallel openmp;
static int forked;

/* What follows `calls` is guarded by `lock`. */
static pthread_mutex_t calls = PTHREAD_MUTEX_INITIALIZER; /* one at a time */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static pthread_cond_t done = PTHREAD_COND_INITIALIZER;
static int64_t workers, wanted, active;
static void (*current)(void *);
static void *argument;

static void *serve(void *unused) {
  (void)unused;
  pthread_mutex_lock(&lock);
  for (;;) {
    while (!wanted)
      pthread_cond_wait(&wake, &lock);
    wanted--;
    active++;
    void (*body)(void *) = current;
    void *context = argument;
    pthread_mutex_unlock(&lock);
    body(context);
    pthread_mutex_lock(&lock);
    if (!--active)
      pthread_cond_signal(&done);
  }
  return NULL;
}

/* This thread is alone now, whatever the others were doing. */
void fma_forked(void) {
  forked = 1;
  pthread_mutex_init(&calls, NULL);
  pthread_mutex_init(&lock, NULL);
  pthread_cond_init(&wake, NULL);
  pthread_cond_init(&done, NULL);
  workers = wanted = active = 0;
}

__attribute__((constructor)) static void prepare(void) {
  *(void **)&openmp = dlsym(RTLD_DEFAULT, "GOMP_parallel");
  pthread_atfork(NULL, NULL, fma_forked);
}

static void own_parallel(int64_t threads, void (*body)(void *),
                         void *context) {
  /* A second caller at the same time does its work alone. */
  if (pthread_mutex_trylock(&calls)) {
    body(context);
    return;
  }
  pthread_mutex_lock(&lock);
  while (workers < threads - 1) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, serve, NULL))
      break;
    pthread_detach(thread);
    workers++;
  }
  current = body;
  argument = context;
  wanted = workers < threads - 1 ? workers : threads - 1;
  pthread_cond_broadcast(&wake);
  pthread_mutex_unlock(&lock);
  body(context);
  pthread_mutex_lock(&lock);
  wanted = 0;
  while (active)
    pthread_cond_wait(&done, &lock);
  pthread_mutex_unlock(&lock);
  pthread_mutex_unlock(&calls);
}

void fma_parallel(int64_t threads, int64_t pieces, void (*body)(void *),
                  void *context) {
  if (threads < 2 || pieces < 2)
    body(context);
  else if (openmp && !forked)
    /* Always as many as PyTorch takes: fewer would end the others. */
    openmp(body, context, (unsigned)threads, 0);
  else
    own_parallel(threads < pieces ? threads : pieces, body, context);
}
#endif
