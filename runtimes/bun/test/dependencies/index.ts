// Says what a package says that the build fetches.

import isOdd from 'is-odd';

export default async ({ res }: any) => res.text(`odd: ${isOdd(3)}`);
