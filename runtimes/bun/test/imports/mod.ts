// Says what a package says that the build fetches.

import isOdd from 'npm:is-odd@^3.0.0';

export default async ({ res }: any) => res.text(`odd: ${isOdd(3)}`);
