//! Boxes that are used again: a request's way and its record are more than allocators keep at hand of
//! their size, and to ask for their memory costs more than to classify the request.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::Mutex;

/// Boxes of one kind that one thread keeps at most: as many as it has requests at once, mostly.
const KEPT: usize = 256;

type Place<T> = Pin<Box<Option<T>>>;

thread_local! {
    /// This thread's shelves, by what they are for: the ways of requests over HTTP/1 and over HTTP/2, and
    /// their records.
    static SHELVES: RefCell<Vec<(TypeId, Arc<dyn Any + Send + Sync>)>> = const { RefCell::new(Vec::new()) };
}

struct Shelf<T>(Mutex<Vec<Place<T>>>);

impl<T: Send + 'static> Shelf<T> {
    /// This thread's. A thread that is ending has none any more: a new one does as well.
    fn here() -> Arc<Self> {
        let find = |shelves: &RefCell<Vec<(TypeId, Arc<dyn Any + Send + Sync>)>>| {
            let mut shelves = shelves.borrow_mut();
            let known = shelves.iter().find(|(kind, _)| *kind == TypeId::of::<T>());
            if let Some(shelf) = known.and_then(|(_, shelf)| shelf.clone().downcast().ok()) {
                return shelf;
            }
            let shelf = Arc::new(Self(Mutex::default()));
            shelves.push((TypeId::of::<T>(), shelf.clone()));
            shelf
        };
        let shelf = SHELVES.try_with(find);
        shelf.unwrap_or_else(|_| Arc::new(Self(Mutex::default())))
    }
}

/// A value in a box that goes back to its shelf.
pub struct Boxed<T: Send + 'static> {
    /// `None` once it is on its way back.
    place: Option<Place<T>>,
    shelf: Arc<Shelf<T>>,
}

impl<T: Send + 'static> Boxed<T> {
    /// Puts what `make` makes into a box of this thread's.
    pub fn with(make: impl FnOnce() -> T) -> Self {
        let shelf = Shelf::here();
        let spare = shelf.0.lock().pop();
        let mut place = spare.unwrap_or_else(|| Box::pin(None));
        place.set(Some(make()));
        Self {
            place: Some(place),
            shelf,
        }
    }

    /// What is in it.
    pub fn get_mut(&mut self) -> Option<&mut T>
    where
        T: Unpin,
    {
        self.as_pin_mut().map(Pin::get_mut)
    }

    /// The same of what must not move; it never does.
    pub fn as_pin_mut(&mut self) -> Option<Pin<&mut T>> {
        self.place.as_mut()?.as_mut().as_pin_mut()
    }
}

impl<T: Send + 'static> Drop for Boxed<T> {
    fn drop(&mut self) {
        let Some(mut place) = self.place.take() else {
            return;
        };
        place.set(None);
        let mut shelf = self.shelf.0.lock();
        if shelf.len() < KEPT {
            shelf.push(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::from_ref;

    use super::*;

    #[test]
    fn a_box_is_used_again_and_what_was_in_it_is_dropped_at_once() {
        let value = Arc::new(1);
        let place = |boxed: &mut Boxed<Arc<i32>>| {
            let value = boxed.as_pin_mut().expect("it is there");
            (**value, from_ref(&*value).addr())
        };
        let mut first = Boxed::with(|| value.clone());
        let mut beside = Boxed::with(|| Arc::new(2));
        let (one, was) = place(&mut first);
        assert_eq!((one, place(&mut beside).0), (1, 2));
        drop(first);
        assert_eq!(Arc::strong_count(&value), 1);
        let mut again = Boxed::with(|| Arc::new(3));
        assert_eq!(place(&mut again), (3, was));
        assert_eq!(place(&mut beside).0, 2);
    }
}
