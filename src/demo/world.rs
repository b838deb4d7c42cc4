//! The world: a picture shows one coloured shape on a plain ground, and a request asks for one. A fixed formula says how popular
//! the picture is with who asked. The trainers see pictures and requests, never the formula.

use std::fmt;

use rand::{Rng, RngExt};

/// A closed set whose members have a word in prompts.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($member:ident $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum $name { $($member),+ }

        impl $name {
            /// Every member.
            pub(crate) const ALL: &[Self] = &[$(Self::$member),+];

            /// The word for it.
            pub(crate) fn word(self) -> &'static str {
                match self { $(Self::$member => $word),+ }
            }
        }
    };
}

words! {
    /// What is drawn.
    Shape { Ring "ring", Square "square", Triangle "triangle", Cross "cross" }
}
words! {
    /// The colour of a shape: six saturated ones, at least an eighth of the colour wheel apart, none of them a ground.
    Colour { Red "red", Yellow "yellow", Green "green", Cyan "cyan", Blue "blue", Purple "purple" }
}
words! {
    /// The ground: colourless, so that every coloured pixel belongs to the shape.
    Background { White "white", Grey "grey", Black "black" }
}
/// Red, green and blue in `0..=1`.
pub(crate) type Rgb = [f32; 3];

impl Colour {
    /// The colour on screen.
    pub(crate) fn rgb(self) -> Rgb {
        match self {
            Self::Red => [0.86, 0.12, 0.12],
            Self::Yellow => [0.98, 0.87, 0.1],
            Self::Green => [0.05, 0.75, 0.15],
            Self::Cyan => [0.1, 0.78, 0.78],
            Self::Blue => [0.12, 0.25, 0.9],
            Self::Purple => [0.68, 0.1, 0.75],
        }
    }
}

impl Background {
    /// The ground on screen.
    pub(crate) fn rgb(self) -> Rgb {
        match self {
            Self::White => [1.0; 3],
            Self::Grey => [0.5; 3],
            Self::Black => [0.0; 3],
        }
    }
}

/// Everything there is to know about a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scene {
    pub(crate) shape: Shape,
    pub(crate) colour: Colour,
    /// How strong the colour is, in [`VIVIDNESS`]: 0 is the grey of the same luminance, 1 is the colour of [`Colour::rgb`].
    pub(crate) vividness: f32,
    /// Half the width of the shape as a share of the picture's side, in [`SIZES`].
    pub(crate) size: f32,
    /// Centre of the shape as shares of the side, from the top left; the shape lies within the picture.
    pub(crate) position: [f32; 2],
    pub(crate) background: Background,
}

impl Scene {
    /// Any scene, all alike.
    pub(crate) fn random(generator: &mut impl Rng) -> Self {
        fn any<T: Copy>(members: &[T], generator: &mut impl Rng) -> T {
            members[generator.random_range(0..members.len())]
        }
        let mut within = |(least, most)| generator.random_range(least..most);
        let (vividness, size) = (within(VIVIDNESS), within(SIZES));
        Self {
            shape: any(Shape::ALL, generator),
            colour: any(Colour::ALL, generator),
            vividness,
            size,
            position: [(); 2].map(|()| 0.5 + generator.random_range(-OFF_CENTRE..OFF_CENTRE)),
            background: any(Background::ALL, generator),
        }
    }

    /// The subject's colour on screen.
    pub(crate) fn rgb(&self) -> Rgb {
        let colour = self.colour.rgb();
        let grey = luminance(colour);
        colour.map(|channel| grey + self.vividness * (channel - grey))
    }
}

/// Palest and most vivid [`Scene::vividness`].
const VIVIDNESS: (f32, f32) = (0.4, 1.0);
/// Smallest and largest [`Scene::size`].
const SIZES: (f32, f32) = (0.33, 0.39);
/// How far the shape is from the centre at most, across and up or down, as a share of the side.
const OFF_CENTRE: f32 = 0.03;

/// What a user asks for; where they did not say, all is welcome.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Request {
    pub(crate) shape: Shape,
    pub(crate) colour: Colour,
    pub(crate) background: Option<Background>,
}

impl Request {
    /// All 96 of them.
    pub(crate) fn all() -> Vec<Self> {
        let combinations = Shape::ALL.iter().flat_map(|shape| Colour::ALL.iter().map(move |colour| (*shape, *colour)));
        combinations.flat_map(|(shape, colour)| Self::of(shape, colour)).collect()
    }

    /// Those for a shape and a colour: on any ground, and on each.
    pub(crate) fn of(shape: Shape, colour: Colour) -> impl Iterator<Item = Self> {
        let grounds = std::iter::once(None).chain(Background::ALL.iter().copied().map(Some));
        grounds.map(move |background| Self { shape, colour, background })
    }

    /// "a pale red ring on a black background", where `adjective` is "pale".
    pub(crate) fn described(&self, adjective: &str) -> String {
        self.to_string().replacen("a ", &format!("a {adjective} "), 1)
    }
}

/// "a red ring on a black background"
impl fmt::Display for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a {} {}", self.colour.word(), self.shape.word())?;
        self.background.map_or(Ok(()), |background| write!(formatter, " on a {} background", background.word()))
    }
}

/// The truth: how popular `scene` is with who made `request`, about -1.4 to 6.4.
///
/// Two points are for the colour that was asked for, one each for the shape and, if asked for, the ground. For everyone there are
/// up to 1.5 points, saturating, for a vivid colour, and up to 1 for a contrast between subject and ground.
pub(crate) fn popularity(request: &Request, scene: &Scene) -> f64 {
    let met = |wanted: bool, points: f64| if wanted { points } else { 0.0 };
    let asked = met(request.colour == scene.colour, 2.0)
        + met(request.shape == scene.shape, 1.0)
        + met(request.background == Some(scene.background), 1.0);
    let vivid = 1.5 * ((f64::from(scene.vividness) - 0.7) / 0.17).tanh();
    let contrast = (3.0 * f64::from((luminance(scene.colour.rgb()) - luminance(scene.background.rgb())).abs())).tanh();
    asked + vivid + contrast
}

/// Rec. 709 weights, in `0..=1`.
fn luminance([red, green, blue]: Rgb) -> f32 {
    0.2126 * red + 0.7152 * green + 0.0722 * blue
}

/// Draws the scene: `side` × `side` pixels, row by row, red, green, blue in a byte each; edges are anti-aliased.
pub(crate) fn render(scene: &Scene, side: u32) -> Vec<u8> {
    let outline = outline(scene.shape);
    let (ground, colour) = (scene.background.rgb(), scene.rgb());
    let pixel_in_shape = 1.0 / (scene.size * side as f32);
    let mut bytes = Vec::with_capacity((side * side * 3) as usize);
    for row in 0..side {
        for column in 0..side {
            // From the shape's centre, in half widths.
            let [x, y] = [(column, 0), (row, 1)]
                .map(|(pixel, axis)| ((pixel as f32 + 0.5) / side as f32 - scene.position[axis as usize]) / scene.size);
            let outside =
                if scene.shape == Shape::Ring { (x.hypot(y) - 0.7).abs() - 0.3 } else { distance(&outline, [x, y]) };
            let coverage = (0.5 - outside / pixel_in_shape).clamp(0.0, 1.0);
            let blend = |channel: usize| ground[channel] + coverage * (colour[channel] - ground[channel]);
            bytes.extend([0, 1, 2].map(|channel| (blend(channel) * 255.0).round() as u8));
        }
    }
    bytes
}

/// Corners of the shape within -1..=1, y pointing down.
fn outline(shape: Shape) -> Vec<[f32; 2]> {
    match shape {
        Shape::Ring => Vec::new(),
        Shape::Square => vec![[-0.85, -0.85], [0.85, -0.85], [0.85, 0.85], [-0.85, 0.85]],
        Shape::Triangle => vec![[0.0, -0.95], [1.0, 0.85], [-1.0, 0.85]],
        Shape::Cross => {
            let arm = 0.33;
            let corner = [[arm, -1.0], [arm, -arm], [1.0, -arm]];
            let turned = |quarter: i32, [x, y]: [f32; 2]| (0..quarter).fold([x, y], |[x, y], _| [-y, x]);
            (0..4).flat_map(|quarter| corner.map(|point| turned(quarter, point))).collect()
        }
    }
}

/// How far the shape reaches to the left and right, up and down of its centre, in half widths.
#[cfg(feature = "torch")]
pub(crate) fn extent(shape: Shape) -> [(f32, f32); 2] {
    let outline = if shape == Shape::Ring { vec![[-1.0, -1.0], [1.0, 1.0]] } else { outline(shape) };
    [0, 1].map(|axis| {
        let reach = outline.iter().map(|corner| corner[axis]);
        (reach.clone().fold(0.0, f32::min), reach.fold(0.0, f32::max))
    })
}

/// Distance of a point to a polygon, negative inside.
fn distance(corners: &[[f32; 2]], [x, y]: [f32; 2]) -> f32 {
    let mut nearest = f32::INFINITY;
    let mut inside = false;
    for (&[ax, ay], &[bx, by]) in corners.iter().zip(corners.iter().cycle().skip(1)) {
        let (edge_x, edge_y) = (bx - ax, by - ay);
        let along = (((x - ax) * edge_x + (y - ay) * edge_y) / (edge_x * edge_x + edge_y * edge_y)).clamp(0.0, 1.0);
        nearest = nearest.min((x - ax - along * edge_x).hypot(y - ay - along * edge_y));
        if (ay > y) != (by > y) && x < ax + edge_x * (y - ay) / edge_y {
            inside = !inside;
        }
    }
    if inside { -nearest } else { nearest }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCENE: Scene = Scene {
        shape: Shape::Square,
        colour: Colour::Red,
        vividness: 1.0,
        size: 0.36,
        position: [0.5, 0.5],
        background: Background::Black,
    };
    const REQUEST: Request = Request { shape: Shape::Square, colour: Colour::Red, background: None };

    #[test]
    fn words() {
        assert_eq!(REQUEST.to_string(), "a red square");
        assert_eq!(REQUEST.described("pale"), "a pale red square");
        let mut all: Vec<String> = Request::all().iter().map(Request::to_string).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 96);
    }

    /// Colour and shape as asked 3; vividness (0.87 - 0.7) / 0.17 = 1; luminance of red 0.2126·0.86 + 0.7152·0.12 + 0.0722·0.12.
    #[test]
    fn popularity_by_hand() {
        let scene = Scene { vividness: 0.87, ..SCENE };
        let everyone = 1.5 * 1_f64.tanh() + (3.0 * 0.277_324_f64).tanh();
        assert!((popularity(&REQUEST, &scene) - (3.0 + everyone)).abs() < 1e-6);
        let on_white = Request { background: Some(Background::White), ..REQUEST };
        assert_eq!(popularity(&on_white, &scene), popularity(&REQUEST, &scene));
        let on_black = Request { background: Some(Background::Black), ..REQUEST };
        assert!((popularity(&on_black, &scene) - (4.0 + everyone)).abs() < 1e-6);
        let wrong = Scene { shape: Shape::Cross, position: [0.5, 0.4], ..scene };
        assert!((popularity(&REQUEST, &wrong) - (2.0 + everyone)).abs() < 1e-6);
    }

    /// Halfway to the grey of red's luminance, 0.2773: 0.86 becomes 0.5687, 0.12 becomes 0.1987.
    #[test]
    fn pale_colours_by_hand() {
        let [red, green, blue] = Scene { vividness: 0.5, ..SCENE }.rgb();
        assert!((red - 0.5687).abs() < 1e-4 && (green - 0.1987).abs() < 1e-4 && green == blue);
    }

    /// The square's half width is 0.85 · 0.3 of 20 pixels: 5.1. So rows 5 to 14 are full and row 4 is covered by 0.1.
    #[test]
    fn pixels_by_hand() {
        let bytes = render(&Scene { size: 0.3, ..SCENE }, 20);
        let red = |row: usize, column: usize| bytes[(row * 20 + column) * 3];
        assert_eq!((bytes.len(), red(10, 10), red(5, 14), red(0, 0), red(3, 10)), (1200, 219, 219, 0, 0));
        assert_eq!(red(4, 10), (0.1_f32 * 219.3).round() as u8);
        assert_eq!(bytes[(10 * 20 + 10) * 3..][..3], [219, 31, 31]);
    }

    /// Share of the bounding square that each shape covers: π/4 · (1 - 0.4²), 0.85², 0.45, and 2·0.33 - 0.33².
    #[test]
    fn areas_are_those_of_the_shapes() {
        let areas = [std::f32::consts::FRAC_PI_4 * 0.84, 0.7225, 0.45, 0.5511];
        for (&shape, area) in Shape::ALL.iter().zip(areas) {
            let bytes = render(&Scene { shape, ..SCENE }, 64);
            let covered: f32 = bytes.iter().step_by(3).map(|&red| f32::from(red) / 219.0).sum();
            let square = (2.0 * SCENE.size * 64.0).powi(2);
            assert!((covered / square - area).abs() < 0.01, "{shape:?}: {} for {area}", covered / square);
        }
    }
}
