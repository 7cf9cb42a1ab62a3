"""The loop over a plan's steps, which every thread of a team runs."""

from __future__ import annotations

HEAD = 4
"""``[thread number, threads, barrier, steps]``: three functions, 0 for one thread alone, and a number."""

STEP = 3
"""``[function, arguments, wait]`` for each step, ``wait`` being 1 if all must be through before the next."""

DRIVE = """
define void @run(ptr %plan) {
entry:
  %number.address = load ptr, ptr %plan
  %alone = icmp eq ptr %number.address, null
  br i1 %alone, label %begin, label %team
team:
  %size.place = getelementptr i64, ptr %plan, i64 1
  %size.address = load ptr, ptr %size.place
  %number = call i32 %number.address()
  %size = call i32 %size.address()
  br label %begin
begin:
  %thread.short = phi i32 [ 0, %entry ], [ %number, %team ]
  %threads.short = phi i32 [ 1, %entry ], [ %size, %team ]
  %thread = sext i32 %thread.short to i64
  %threads = sext i32 %threads.short to i64
  %barrier.place = getelementptr i64, ptr %plan, i64 2
  %barrier = load ptr, ptr %barrier.place
  %count.place = getelementptr i64, ptr %plan, i64 3
  %count = load i64, ptr %count.place
  br label %head
head:
  %index = phi i64 [ 0, %begin ], [ %next, %done ]
  %place = phi i64 [ HEAD, %begin ], [ %following, %done ]
  %more = icmp slt i64 %index, %count
  br i1 %more, label %step, label %end
step:
  %function.place = getelementptr i64, ptr %plan, i64 %place
  %function = load ptr, ptr %function.place
  %arguments.place = getelementptr i64, ptr %function.place, i64 1
  %arguments = load ptr, ptr %arguments.place
  call void %function(ptr %arguments, i64 %thread, i64 %threads)
  %wait.place = getelementptr i64, ptr %function.place, i64 2
  %wait = load i64, ptr %wait.place
  %waits = icmp ne i64 %wait, 0
  %together = icmp sgt i64 %threads, 1
  %meet = and i1 %waits, %together
  br i1 %meet, label %barrier.call, label %done
barrier.call:
  call void %barrier()
  br label %done
done:
  %next = add i64 %index, 1
  %following = add i64 %place, STEP
  br label %head
end:
  ret void
}
""".replace("HEAD", str(HEAD)).replace("STEP", str(STEP))
"""``void run(const int64_t *plan)``."""
