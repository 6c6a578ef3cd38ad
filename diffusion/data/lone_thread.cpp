#include <ATen/Parallel.h>
#include <omp.h>
#include <diffusion/data/lone_thread.h>

namespace memsieve::diffusion {

void compute_on_this_thread_alone() {
  // of this thread; at::set_num_threads would set it for threads to come, too
  at::get_num_threads();  // or the thread's first operator would set the number anew
  omp_set_num_threads(1);
}

}  // namespace memsieve::diffusion
