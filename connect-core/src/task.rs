//! Operations made of several steps, for the tensor adapters: [`Task`], and [`Wait`], which it is made of.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::op::{Completion, Pending};

/// Something that ends by itself, and can be awaited or waited for.
pub trait Wait: Future + Send + Unpin + 'static {
    /// Blocks the calling thread until the result is there.
    fn wait(self) -> Self::Output;
}

/// An operation of one or more steps: await it, or call [`wait`](Self::wait) to block.
///
/// The first step has already begun. Dropping the task ends the operation.
///
/// ```
/// use connect_core::Task;
///
/// let begun: Task<u32, std::num::ParseIntError> = Task::ready("7".parse());
/// let doubled = Task::after(begun, |seven| Task::ready(seven.map(|n| 2 * n)));
/// assert_eq!(doubled.wait(), Ok(14));
/// ```
#[must_use = "dropping a task ends its operation"]
pub struct Task<T, E>(State<T, E>);

enum State<T, E> {
    Ready(Option<Result<T, E>>),
    Running(Box<dyn Step<T, E>>),
}

impl<T, E> Task<T, E> {
    /// A task that has ended.
    pub fn ready(result: Result<T, E>) -> Self {
        Self(State::Ready(Some(result)))
    }

    /// Waits for the result, blocking the calling thread.
    ///
    /// # Panics
    /// If the task was polled to its end before.
    pub fn wait(self) -> Result<T, E> {
        let mut state = self.0;
        loop {
            match state {
                State::Ready(result) => return result.expect("a task is not waited for after its end"),
                State::Running(step) => state = step.wait().0,
            }
        }
    }
}

impl<T: 'static, E: 'static> Task<T, E> {
    /// A task that goes on with `next` once `step` has ended.
    pub fn after<S: Wait>(step: S, next: impl FnOnce(S::Output) -> Self + Send + 'static) -> Self {
        Self(State::Running(Box::new(After { step, next: Some(next) })))
    }
}

/// What was decided when the task was made is all there is to pin: nothing inside refers to itself.
impl<T, E> Unpin for Task<T, E> {}

impl<T, E> Future for Task<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match &mut self.0 {
                State::Ready(result) => {
                    return Poll::Ready(result.take().expect("a task is not polled after its end"));
                }
                State::Running(step) => match step.poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(next) => *self = next,
                },
            }
        }
    }
}

impl<T: Send + 'static, E: Send + 'static> Wait for Task<T, E> {
    fn wait(self) -> Self::Output {
        Task::wait(self)
    }
}

impl<T: Send + 'static, E: Send + 'static> Wait for Pending<T, E> {
    fn wait(self) -> Self::Output {
        Pending::wait(self)
    }
}

impl<T: 'static, E: 'static> Wait for Completion<T, E> {
    fn wait(self) -> Self::Output {
        Completion::wait(self)
    }
}

impl<T, E> fmt::Debug for Task<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            State::Ready(_) => "Task(ready)",
            State::Running(_) => "Task(running)",
        })
    }
}

/// One step and what follows it, with their types forgotten.
trait Step<T, E>: Send {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Task<T, E>>;
    fn wait(self: Box<Self>) -> Task<T, E>;
}

struct After<S, F> {
    step: S,
    next: Option<F>,
}

impl<T, E, S: Wait, F: FnOnce(S::Output) -> Task<T, E> + Send> Step<T, E> for After<S, F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Task<T, E>> {
        Pin::new(&mut self.step).poll(cx).map(|output| {
            let next = self.next.take().expect("a step ends once");
            next(output)
        })
    }

    fn wait(self: Box<Self>) -> Task<T, E> {
        let next = self.next.expect("a step ends once");
        next(self.step.wait())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::ParseIntError;

    fn parse(text: &'static str) -> Task<i32, ParseIntError> {
        Task::ready(text.parse())
    }

    /// Pending once, to see that wake-ups get through.
    struct Later(bool);

    impl Future for Later {
        type Output = i32;

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<i32> {
            if std::mem::replace(&mut self.0, true) {
                return Poll::Ready(3);
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    }

    impl Wait for Later {
        fn wait(self) -> i32 {
            3
        }
    }

    fn chain() -> Task<i32, ParseIntError> {
        Task::after(Later(false), |a| Task::after(parse("4"), move |b| Task::ready(b.map(|b| a * b))))
    }

    #[test]
    fn a_chain_gives_the_same_awaited_and_waited_for() {
        assert_eq!(chain().wait(), Ok(12));
        assert_eq!(futures_executor::block_on(chain()), Ok(12));
    }

    #[test]
    fn an_error_ends_the_chain_where_the_next_step_says_so() {
        let task = Task::after(parse("x"), |result| match result {
            Ok(_) => parse("1"),
            Err(error) => Task::ready(Err(error)),
        });
        assert!(task.wait().is_err());
    }

    #[test]
    fn a_task_may_move_between_threads() {
        fn is_send<T: Send>(_: &T) {}
        is_send(&chain());
    }
}
