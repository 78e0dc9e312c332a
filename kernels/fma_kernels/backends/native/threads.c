/* A pool of threads that outlives its calls and survives a fork.
 *
 * Work is taken piece by piece, so the caller never waits for a worker that
 * did not wake in time, and results do not depend on who did what.
 */
#include "fma.h"

int64_t fma_take(struct fma_work *work) {
  int64_t taken = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
  return taken < work->count ? taken : -1;
}

#if defined(_WIN32)

void fma_parallel(int64_t threads, void (*body)(void *), void *context) {
  (void)threads;
  body(context);
}

#else
#include <pthread.h>

/* What follows the first two is guarded by `lock`. */
static pthread_mutex_t calls = PTHREAD_MUTEX_INITIALIZER; /* one at a time */
static pthread_once_t once = PTHREAD_ONCE_INIT;
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

/* A forked child has this thread alone, whatever the others were doing. */
static void forget(void) {
  pthread_mutex_init(&calls, NULL);
  pthread_mutex_init(&lock, NULL);
  pthread_cond_init(&wake, NULL);
  pthread_cond_init(&done, NULL);
  workers = wanted = active = 0;
}

static void prepare(void) { pthread_atfork(NULL, NULL, forget); }

void fma_parallel(int64_t threads, void (*body)(void *), void *context) {
  /* A second caller at the same time does its work alone. */
  if (threads < 2 || pthread_mutex_trylock(&calls)) {
    body(context);
    return;
  }
  pthread_once(&once, prepare);
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
#endif
