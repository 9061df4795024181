// Says what a package says that the build fetches.

'use strict';

const isOdd = require('is-odd');

module.exports = async ({ res }) => res.text(`odd: ${isOdd(3)}`);
