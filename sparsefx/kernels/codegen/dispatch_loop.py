"""The loop over a plan's steps, which every thread of a team runs."""

from __future__ import annotations

HEAD = 4
"""``[thread number, threads, barrier, steps]``: three functions, 0 for one thread alone, and a number."""

STEP = 2
"""``[function, arguments]`` for each step; all threads are through with one before any begins the next."""

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
  %together = icmp sgt i64 %threads, 1
  br i1 %together, label %barrier.call, label %done
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

EACH_HEAD = 4
"""``[thread number, threads, DRIVE, slots]``: three functions and a number."""

EACH = """
define void @run(ptr %list) {
entry:
  %number.address = load ptr, ptr %list
  %size.place = getelementptr i64, ptr %list, i64 1
  %size.address = load ptr, ptr %size.place
  %drive.place = getelementptr i64, ptr %list, i64 2
  %drive = load ptr, ptr %drive.place
  %slots.place = getelementptr i64, ptr %list, i64 3
  %slots = load i64, ptr %slots.place
  %number = call i32 %number.address()
  %size = call i32 %size.address()
  %thread = sext i32 %number to i64
  %threads = sext i32 %size to i64
  br label %slots.head
slots.head:
  %slot = phi i64 [ %thread, %entry ], [ %slot.next, %slot.done ]
  %slot.more = icmp slt i64 %slot, %slots
  br i1 %slot.more, label %slot.begin, label %end
slot.begin:
  %bounds = add i64 %slot, HEAD
  %first.place = getelementptr i64, ptr %list, i64 %bounds
  %first = load i64, ptr %first.place
  %last.place = getelementptr i64, ptr %first.place, i64 1
  %last = load i64, ptr %last.place
  br label %head
head:
  %index = phi i64 [ %first, %slot.begin ], [ %next, %body ]
  %more = icmp slt i64 %index, %last
  br i1 %more, label %body, label %slot.done
body:
  %plan.place = getelementptr i64, ptr %list, i64 %index
  %plan = load ptr, ptr %plan.place
  call void %drive(ptr %plan)
  %next = add i64 %index, 1
  br label %head
slot.done:
  %slot.next = add i64 %slot, %threads
  br label %slots.head
end:
  ret void
}
""".replace("HEAD", str(EACH_HEAD))
"""``void run(const int64_t *list)``: threads share out slots, each of which is plans for one thread.

After the head come, for each slot, the index in the list of its first plan, then the end of the last one's,
then the plans. Those of a slot run one after the other, so that they can use the same memory, whatever the
number of threads that there turn out to be."""
