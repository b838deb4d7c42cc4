//! What a picture of the toy world shows, from its pixels alone: analysis by synthesis. Grounds are colourless and subjects are
//! not, so the subject's place and colour can be read off. Shape and size are those whose drawing comes nearest.

use super::world::{Background, Colour, Rgb, Scene, Shape, extent, render};

/// Largest less smallest channel of a pixel that belongs to the subject: half of what the palest one has.
const CHROMA: f32 = 0.11;
/// A subject covers at least this share of the picture.
const LEAST: f32 = 0.004;
/// Sizes to try, as shares of what the subject's outline says.
const SIZES_TRIED: [f32; 3] = [0.92, 1.0, 1.08];

/// The scene that `pixels` show (`side` × `side`, row by row, red, green, blue), or nothing where there is no subject.
pub(crate) fn detect(pixels: &[u8], side: u32) -> Option<Scene> {
    let width = side as usize;
    let pixel = |index: usize| -> Rgb { [0, 1, 2].map(|channel| f32::from(pixels[3 * index + channel]) / 255.0) };
    let subject = subject(width, &|index| chroma(pixel(index)) > CHROMA);
    if (subject.len() as f32) < LEAST * (width * width) as f32 {
        return None;
    }
    let colour = nearest(Colour::ALL, |colour| turn_between(hue(colour.rgb()), hue(mean(&subject, pixel))));
    let mut chromas: Vec<f32> = subject.iter().map(|index| chroma(pixel(*index))).collect();
    // The median, as the outline is mixed with the ground.
    let (_, median, _) = chromas.select_nth_unstable_by(subject.len().div_euclid(2), f32::total_cmp);
    let vividness = *median / chroma(colour.rgb());
    let frame: Vec<usize> = (0..width * width)
        .filter(|index| [index.div_euclid(width), index % width].iter().any(|place| *place == 0 || *place == width - 1))
        .collect();
    let ground = mean(&frame, pixel);
    let background = nearest(Background::ALL, |background| distance(background.rgb(), ground));
    let bounds = |place: fn(usize, usize) -> usize| {
        let places = || subject.iter().map(|index| place(*index, width) as f32);
        (places().fold(f32::INFINITY, f32::min), places().fold(0.0, f32::max) + 1.0)
    };
    let (left, right) = bounds(|index, width| index % width);
    let (top, bottom) = bounds(|index, width| index.div_euclid(width));
    let mut best = (f32::INFINITY, None);
    for &shape in Shape::ALL {
        let [(low_x, high_x), (low_y, high_y)] = extent(shape);
        let outlined = 0.5 * ((right - left) / (high_x - low_x) + (bottom - top) / (high_y - low_y)) / side as f32;
        for size in SIZES_TRIED.map(|share| share * outlined) {
            let centre =
                |low: f32, high: f32, from: f32, to: f32| 0.5 * (low + high) / side as f32 - 0.5 * size * (from + to);
            let position = [centre(left, right, low_x, high_x), centre(top, bottom, low_y, high_y)];
            let scene = Scene { shape, colour, vividness, size, position, background };
            let drawn = render(&scene, side);
            let error: f32 = drawn.iter().zip(pixels).map(|(a, b)| (f32::from(*a) - f32::from(*b)).powi(2)).sum();
            if error < best.0 {
                best = (error, Some(scene));
            }
        }
    }
    best.1
}

/// The largest connected set of pixels for which `belongs` holds.
fn subject(width: usize, belongs: &dyn Fn(usize) -> bool) -> Vec<usize> {
    let mut open: Vec<bool> = (0..width * width).map(belongs).collect();
    let mut largest = Vec::new();
    for start in 0..open.len() {
        let mut found = Vec::new();
        let mut next = vec![start];
        while let Some(index) = next.pop() {
            if !std::mem::take(&mut open[index]) {
                continue;
            }
            found.push(index);
            let column = index % width;
            let around = [
                (column > 0).then(|| index - 1),
                (column + 1 < width).then_some(index + 1),
                index.checked_sub(width),
                Some(index + width).filter(|below| *below < open.len()),
            ];
            next.extend(around.into_iter().flatten());
        }
        if found.len() > largest.len() {
            largest = found;
        }
    }
    largest
}

fn nearest<T: Copy>(all: &[T], distance: impl Fn(T) -> f32) -> T {
    let compare = |a: &&T, b: &&T| distance(**a).total_cmp(&distance(**b));
    all.iter().min_by(compare).copied().unwrap_or(all[0])
}

fn mean(indices: &[usize], pixel: impl Fn(usize) -> Rgb) -> Rgb {
    let sum = indices.iter().fold([0.0; 3], |sum: Rgb, index| {
        let pixel = pixel(*index);
        [0, 1, 2].map(|channel| sum[channel] + pixel[channel])
    });
    sum.map(|channel| channel / indices.len().max(1) as f32)
}

fn distance(a: Rgb, b: Rgb) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

fn chroma(pixel: Rgb) -> f32 {
    pixel.iter().fold(0.0, |most: f32, channel| most.max(*channel))
        - pixel.iter().fold(1.0, |least: f32, channel| least.min(*channel))
}

/// In sixths of a turn, `0..6`; red is 0.
fn hue([red, green, blue]: Rgb) -> f32 {
    let chroma = chroma([red, green, blue]).max(f32::MIN_POSITIVE);
    let sixths = if red >= green && red >= blue {
        (green - blue) / chroma
    } else if green >= blue {
        (blue - red) / chroma + 2.0
    } else {
        (red - green) / chroma + 4.0
    };
    sixths.rem_euclid(6.0)
}

/// The shorter way round.
fn turn_between(a: f32, b: f32) -> f32 {
    let turn = (a - b).abs();
    turn.min(6.0 - turn)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::demo::world::Scene;

    /// Every scene is seen as what it is; size and position within a pixel, vividness within a fiftieth.
    #[test]
    fn what_was_drawn_is_what_is_seen() {
        let mut generator = ChaCha8Rng::seed_from_u64(0);
        for _ in 0..600 {
            let scene = Scene::random(&mut generator);
            let seen = detect(&render(&scene, 32), 32).unwrap();
            let words = |scene: &Scene| (scene.shape, scene.colour, scene.background);
            assert_eq!(words(&seen), words(&scene), "{scene:?} seen as {seen:?}");
            assert!((seen.size - scene.size).abs() < 1.0 / 32.0, "{scene:?} seen as {seen:?}");
            assert!((seen.vividness - scene.vividness).abs() < 0.02, "{scene:?} seen as {seen:?}");
            for axis in [0, 1] {
                assert!((seen.position[axis] - scene.position[axis]).abs() < 1.0 / 32.0, "{scene:?} seen as {seen:?}");
            }
        }
    }

    #[test]
    fn a_ground_alone_shows_nothing() {
        for shade in [0, 128, 255] {
            assert_eq!(detect(&[shade; 3 * 16 * 16], 16), None);
        }
    }
}
